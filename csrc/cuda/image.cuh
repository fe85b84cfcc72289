// The image, channel and position of the calling thread (order.h), and offsets by strides.
#pragma once

#include <cuda_runtime.h>

#include "cuda/order.h"

namespace convnorm::cuda {

struct ImageThread {
  std::int64_t n;
  int c, at[kSpatial];
  bool on;  // not past the end of the image

  __device__ ImageThread(const Order& order, int vector) {
    const std::uint32_t blocks = order.blocks(), image = blockIdx.x / blocks;
    const std::uint32_t i = (blockIdx.x - image * blocks) * kImageThreads + threadIdx.x;
    n = image;
    on = i < order.count;
    order.place(on ? i : 0, c, at);
    c *= vector;
  }
};

// Strides in plain arrays: kernels read them from constant memory.
struct Steps {
  std::int64_t n, c, s[kSpatial];

  __device__ std::int64_t operator()(std::int64_t image, std::int64_t channel,
                                     const int (&at)[kSpatial]) const {
    return image * n + channel * c + at[0] * s[0] + at[1] * s[1] + at[2] * s[2];
  }
};

inline Steps steps_of(const Strides& s) { return {s.n, s.c, {s.s[0], s.s[1], s.s[2]}}; }

}  // namespace convnorm::cuda
