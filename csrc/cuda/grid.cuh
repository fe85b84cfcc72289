// Blocks that run at the same time and wait for each other: for kernels started by OnDevice::launch_together.
// tests/cpp/shim/cuda/grid.cuh says the same for kernels that are run by the host.
#pragma once

#include <cooperative_groups.h>

namespace convnorm::cuda {

// What any block wrote to memory before, every block sees after.
__device__ inline void wait_for_grid() { cooperative_groups::this_grid().sync(); }

// The shared memory of the block whose size the launch says, on 16 bytes.
__device__ inline void* dynamic_shared() {
  extern __shared__ uint4 convnorm_dynamic_shared[];
  return convnorm_dynamic_shared;
}

}  // namespace convnorm::cuda
