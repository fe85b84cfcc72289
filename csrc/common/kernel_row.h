// One row of an op's ordered list of kernels (common/registry.h).
#pragma once

#include "cpu/isa.h"

namespace convnorm {

template <class Params, class Run = void (*)(const Params&)>
struct KernelRow {
  const char* name;                      // method, tile and instruction set: "conv_igemm_6x16_avx2"
  const char* about;                     // one line for explain(): the tile and what the method is
  Isa isa;                               // it needs
  const char* (*refuse)(const Params&);  // null when it accepts, else the reason; no function: takes all
  Run run;
};

}  // namespace convnorm
