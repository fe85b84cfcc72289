// What max pooling's kernels for CUDA refuse, and their rows of the ordered lists.
#pragma once

#include "cuda/order.h"
#include "ops/max_pool/max_pool.h"

namespace convnorm::max_pool {

// Kernels for CUDA have 31 bits for a coordinate, and for the vectors of an image.
inline const char* refuse_cuda(const Params& p) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  for (int d = 0; d < kSpatial; ++d)
    if (p.in[d] + 2 * p.window.pad[d] + reach(p.window, d) + p.window.stride[d] > most)
      return "an extent needs more than 31 bits";
  if (plane(p) > most || positions(p.window) > most) return "positions need more than 31 bits";
  const std::int64_t outputs = p.out[0] * p.out[1] * p.out[2];
  if (p.c * plane(p) > most || p.c * outputs > most) return "an image has more than 2^31 elements";
  return nullptr;
}

inline const char* refuse_channels_cuda(const Params& p) {
  const int vector = 16 / bytes(p.dtype);
  if (p.dtype == DType::f64) return "doubles are moved one by one";
  if (p.c % vector != 0) return "channels are not made of vectors of 16 bytes";
  if (!p.aligned || !cuda::in_vectors(p.n, p.input, p.in, vector) ||
      !cuda::in_vectors(p.n, p.output, p.out, vector) ||
      (p.record != Argmax::none && !cuda::in_vectors(p.n, p.argmax, p.out, vector)))
    return "channels are not adjacent, or not on 16 bytes";
  return refuse_cuda(p);
}

template <class Fn>
Kernel<Fn> cuda_row(const char* name, const char* about, const char* (*refuse)(const Params&), Fn run) {
  return {name, about, Isa::generic, refuse, run, DeviceKind::cuda};
}

inline constexpr const char* kCudaChannels = "16 bytes of channels per thread";
inline constexpr const char* kCudaDirect = "one element per thread, any strides";

}  // namespace convnorm::max_pool
