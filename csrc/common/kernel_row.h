// One row of an op's ordered list of kernels (common/registry.h).
#pragma once

#include "common/device.h"
#include "cpu/isa.h"

namespace convnorm {

// How a kernel lays out weights for itself, for callers that keep them so from call to call. Bytes and
// contents follow from the problem alone.
template <class Params>
struct WeightPacking {
  std::int64_t (*bytes)(const Params&);
  void (*pack)(const Params&, void* out);
};

template <class Params, class Run = void (*)(const Params&)>
struct KernelRow {
  const char* name;                      // method, tile and instruction set: "conv_igemm_6x16_avx2"
  const char* about;                     // one line for explain(): the tile and what the method is
  Isa isa;                               // it needs
  const char* (*refuse)(const Params&);  // null when it accepts, else the reason; no function: takes all
  Run run;                               // null where this build has no CUDA: the row is then no kernel
  DeviceKind device = DeviceKind::cpu;
  std::int64_t (*workspace)(const Params&) = nullptr;  // bytes that the host file allocates for it
  const WeightPacking<Params>* packing = nullptr;      // where it can take weights that were packed before
};

}  // namespace convnorm

// Marks the declaration of a kernel for CUDA. The ordered lists name such kernels in every build; where the
// .cu files are not linked in, the address is null. So the C++ objects of both builds are the same.
#define CONVNORM_CUDA_KERNEL __attribute__((weak))
