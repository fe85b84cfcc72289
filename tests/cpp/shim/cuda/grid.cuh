// csrc/cuda/grid.cuh for kernels that are run by the host.
#pragma once

#include <cuda_runtime.h>

namespace convnorm::cuda {

inline void wait_for_grid() { shim::wait_for_grid(); }
inline void* dynamic_shared() { return shim::dynamic_shared(); }

}  // namespace convnorm::cuda
