// Kernels for CUDA on the host, for tests only: stands in for the toolkit's header when g++ compiles a .cu
// file.
//
// Threads of a block are fibers of one OS thread, blocks run one after the other. Wherever a thread waits,
// the next to run is drawn at random, and so is the order of blocks: a missing barrier, or a result that
// depends on the order, shows as a difference between seeds. Of a cooperative launch, all blocks run up to
// where they wait for the grid, in an order that is drawn anew each time; static shared memory does not
// outlive that, dynamic shared memory is the block's own. Not modelled: memory spaces, caches, and warps in
// lockstep.
#pragma once

#include <math.h>

#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block at a time
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint2 {
  std::uint32_t x, y;
};
struct uint4 {
  std::uint32_t x, y, z, w;
};
struct double2 {
  double x, y;
};

using cudaError_t = int;
using cudaStream_t = void*;
inline constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace shim {
extern std::uint64_t seed;
extern std::int64_t launches;
// Of the device; tests set them.
extern int cooperative, processors, shared_bytes;
void run_grid(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);
void wait_for_block();
void wait_for_grid();
void* dynamic_shared();
// Whether any thread of the block says so; a barrier as well.
bool any_of_block(bool mine);
// Every lane of the warp gives a word and gets that of `lane`.
std::uint64_t exchange(std::uint64_t word, int lane);
int lane();
}  // namespace shim

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

template <class... Wanted, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Wanted...), Given... given) {
  shim::run_grid(*config, [&] { kernel(given...); });
  return cudaSuccess;
}

enum cudaDeviceAttr {
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  *value = what == cudaDevAttrCooperativeLaunch     ? shim::cooperative
           : what == cudaDevAttrMultiProcessorCount ? shim::processors
                                                    : shim::shared_bytes;
  return cudaSuccess;
}
struct cudaFuncAttributes {
  std::size_t sharedSizeBytes;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* of, Kernel*) {
  of->sharedSizeBytes = 1024;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, std::size_t dynamic) {
  *blocks = shim::shared_bytes / static_cast<int>(dynamic + 1024);
  return cudaSuccess;
}

inline void __syncthreads() { shim::wait_for_block(); }
inline int __syncthreads_or(int mine) { return shim::any_of_block(mine != 0); }
inline int atomicMin(int* at, int value) {
  const int before = *at;
  if (value < before) *at = value;
  return before;
}
inline int atomicMax(int* at, int value) {
  const int before = *at;
  if (value > before) *at = value;
  return before;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  std::uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof(T));
  word = shim::exchange(word, shim::lane() ^ mask);
  __builtin_memcpy(&value, &word, sizeof(T));
  return value;
}
