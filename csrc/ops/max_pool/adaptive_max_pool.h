// Adaptive max pooling, and what works by recorded indices alone: its backward, and max un-pooling.
//
//   adaptive   out[n,c,o]  = max over i in window o of in[n,c,i]     (adaptive_span, common/window.h)
//              idx[n,c,o]  = where it was: (i_d*in_h + i_h)*in_w + i_w
//   spread     plane[n,c,i] = sum over o with idx[n,c,o] == i of value[n,c,o]     (adaptive's backward)
//   place      plane[n,c,i] = value[n,c,o] of the last o with idx[n,c,o] == i, or 0   (un-pooling)
//   pick       value[n,c,o] = plane[n,c,idx[n,c,o]]       (the transpose of both: un-pooling's backward)
//
// Of equal values the first in row-major order wins, of several NaN the last, as in max_pool.h.
//
// Params are those of max_pool.h without a window: `in` and `input` are the plane, `out`, `output` and
// `argmax` the values and their indices (always int64).
//
// This header is torch-free: it is the contract between the host files (adaptive_max_pool.cpp,
// max_unpool.cpp) and the kernels (cpu/, cuda/).
#pragma once

#include "ops/max_pool/max_pool.h"

namespace convnorm::max_pool {

// The same problem with the dimensions that one window spans merged, where memory allows: an index in the run
// is the index in the plane.
inline Params merged(const Params& p) {
  Params m = p;
  for (int d = 1; d >= 0; --d) {
    const bool dense = m.in[d] == 1 || m.input.s[d] == m.in[2] * m.input.s[2];
    if (m.out[d] != 1 || m.out[2] != 1 || !dense) break;
    m.in[2] *= m.in[d];
    m.in[d] = 1;
  }
  return m;
}

// The first index outside the plane, in row-major order, or none. Kernels on CUDA say none: the host would
// have to wait for them. They fill such a plane with NaN.
struct BadIndex {
  bool found = false;
  std::int64_t index = 0;
};
using PlaceFn = BadIndex (*)(const Params& p, const void* values, const void* indices, void* plane);

std::span<const Kernel<ForwardFn>> adaptive_kernels();
std::span<const Kernel<BackwardFn>> spread_kernels();
std::span<const Kernel<PlaceFn>> place_kernels();
std::span<const Kernel<GatherFn>> pick_kernels();

// What each instruction set exports; indices may be null.
struct AdaptiveKernels {
  ForwardFn channels;  // vectors over channels (cpu/adaptive_max_pool_kernel.h)
  ForwardFn planes;    // vectors over planes
  BackwardFn spread;   // one value per plane, channels_last (cpu/adaptive_max_pool_spread.h)
  BackwardFn scatter;  // eight channels at once (cpu/adaptive_max_pool_scatter.h); AVX-512, else null
};
extern const AdaptiveKernels adaptive_generic;
#if defined(__x86_64__)
extern const AdaptiveKernels adaptive_avx2, adaptive_avx512;
#endif

// Scalar code (cpu/adaptive_max_pool_direct.cpp).
void adaptive_direct(const Params& p, const void* input, void* output, void* indices);

// Scalar code (cpu/max_pool_indices.cpp). The plane of spread and place is dense in either layout.
// Indices outside the plane add nothing.
void spread_indices(const Params& p, const void* values, const void* indices, void* plane);
// Indices outside the plane give 0.
void pick_indices(const Params& p, const void* plane, const void* indices, void* values);
BadIndex place_indices(const Params& p, const void* values, const void* indices, void* plane);

// On CUDA (cuda/); pick is the gather of max_pool.h.
CONVNORM_CUDA_KERNEL void adaptive_channels_cuda(const Params& p, const void* input, void* output,
                                                 void* indices);
CONVNORM_CUDA_KERNEL void adaptive_warp_cuda(const Params& p, const void* input, void* output, void* indices);
CONVNORM_CUDA_KERNEL void adaptive_direct_cuda(const Params& p, const void* input, void* output,
                                               void* indices);
CONVNORM_CUDA_KERNEL void spread_cuda(const Params& p, const void* values, const void* indices, void* plane);
CONVNORM_CUDA_KERNEL BadIndex place_cuda(const Params& p, const void* values, const void* indices,
                                         void* plane);

}  // namespace convnorm::max_pool
