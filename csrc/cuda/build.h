// What was compiled by nvcc; null where nothing was.
#pragma once

#include "common/kernel_row.h"

namespace convnorm::cuda {

CONVNORM_CUDA_KERNEL const char* architectures();  // "sm_80 sm_90a"

}  // namespace convnorm::cuda
