// How kernels for CUDA are started: on the tensors' device, on torch's current stream of that device, with
// errors as exceptions. The only place below the host files that knows torch, by one C function.
//
// Nothing here waits for the device, and nothing is allocated: calls can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/check.h"
#include "common/device.h"

// libtorch_cuda's. Weak, so that the shared object also loads under a torch without CUDA.
extern "C" __attribute__((weak, visibility("default"))) std::int32_t aoti_torch_get_current_cuda_stream(
    std::int32_t device_index, void** stream);

namespace convnorm::cuda {

inline void require(cudaError_t status, const char* what) {
  check(status == cudaSuccess, "convnorm: CUDA: ", what, ": ", cudaGetErrorString(status));
}

// Makes a device current for its lifetime and starts kernels on it.
class OnDevice {
 public:
  explicit OnDevice(Device device) {
    check(aoti_torch_get_current_cuda_stream != nullptr, "convnorm: CUDA: this torch has none");
    require(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device.index) require(cudaSetDevice(device.index), "cudaSetDevice");
    moved_ = before_ != device.index;
    void* stream = nullptr;
    check(aoti_torch_get_current_cuda_stream(device.index, &stream) == 0,
          "convnorm: CUDA: no current stream on device ", device.index);
    stream_ = static_cast<cudaStream_t>(stream);
  }
  ~OnDevice() {
    if (moved_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  template <class... Wanted, class... Given>
  void launch(void (*kernel)(Wanted...), std::int64_t blocks, dim3 threads, Given&&... arguments) const {
    if (blocks == 0) return;
    check(blocks < std::int64_t{1} << 31, "convnorm: CUDA: ", blocks, " blocks are more than a grid has");
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = threads;
    config.stream = stream_;
    require(cudaLaunchKernelEx(&config, kernel, static_cast<Wanted>(arguments)...), "launch");
  }

  // Blocks that run at the same time (cuda/grid.cuh), each with `shared` bytes of dynamic shared memory; the
  // caller has asked for that much and knows that so many blocks fit.
  template <class... Wanted, class... Given>
  void launch_together(void (*kernel)(Wanted...), int blocks, dim3 threads, std::size_t shared,
                       Given&&... arguments) const {
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = threads;
    config.dynamicSmemBytes = shared;
    config.stream = stream_;
    config.attrs = &together;
    config.numAttrs = 1;
    require(cudaLaunchKernelEx(&config, kernel, static_cast<Wanted>(arguments)...), "cooperative launch");
  }

 private:
  int before_ = 0;
  bool moved_ = false;
  cudaStream_t stream_ = nullptr;
};

}  // namespace convnorm::cuda
