// The per-channel values that a thread of batch norm's kernels needs for its elements.
#pragma once

#include "cuda/walk.cuh"
#include "ops/batch_norm/cuda/batch_norm_passes.h"

namespace convnorm::batch_norm {

using cuda::Batch;
using cuda::channel_of;
using cuda::kChannels;
using cuda::kMergeLanes;
using cuda::kMergeWays;
using cuda::kThreads;
using cuda::kUnroll;
using cuda::Place;
using cuda::Plan;
using cuda::Raw;
using cuda::up_to;
using cuda::Walk;

// y = (x - hi) scale + shift, and in the backward x' = scale g - k0 - (x - hi) k2. hi is the mean in C; what
// it lacks of the mean is in shift and in k0. One function for both directions, so that the backward finds
// the very values that relu saw.
template <class C>
struct Affine {
  C hi, scale, shift, k0, k2;
};

template <class C>
__device__ inline Affine<C> affine(const PerChannel& at, double eps, const Terms& terms, std::int64_t c) {
  const double mean = cuda::read(at.mean, c, 0), r = 1 / sqrt(cuda::read(at.var, c, 1) + eps);
  const C hi = static_cast<C>(mean);
  const double low = mean - hi, scale = cuda::read(at.weight, c, 1) * r, times = terms.unscaled ? scale : 1;
  const double k2 = r * times * cuda::read(terms.slope, c, 0);
  return {hi, static_cast<C>(scale), static_cast<C>(cuda::read(at.bias, c, 0) - low * scale),
          static_cast<C>(times * cuda::read(terms.level, c, 0) - low * k2), static_cast<C>(k2)};
}

// Those of the thread's channels. The block computes each once, in `shared` of kMostColumns.
template <class T>
inline constexpr int kMostColumns = 32 * cuda::kVector<T>;

template <bool kRows, class C, int K>
__device__ inline void load_affine(Affine<C> (&mine)[K], Affine<C>* shared, const Plan& plan, Place place,
                                   const PerChannel& at, double eps, const Terms& terms) {
  const int columns = kRows ? plan.lanes * K : 1;
  const std::int64_t first = place.channel * columns;
  for (int i = place.thread; i < columns; i += kThreads)
    if (first + i < plan.channels)
      shared[i] = affine<C>(at, eps, terms, place.image * plan.channels + first + i);
  __syncthreads();
  for (int k = 0; k < K; ++k) mine[k] = shared[kRows ? place.lane * K + k : 0];
}

// act(y + residual) of a vector.
template <class T, bool kRows, int V, int K>
__device__ inline Raw<T, V> normalised(const Raw<T, V>& x, const Raw<T, V>& residual, bool add,
                                       const Affine<compute_t<T>> (&a)[K], bool relu) {
  compute_t<T> y[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const Affine<compute_t<T>>& of = a[channel_of<kRows>(v)];
    y[v] = fma(cuda::element(x, v) - of.hi, of.scale, of.shift);
    if (add) y[v] += cuda::element(residual, v);
    if (relu && y[v] < 0) y[v] = 0;
  }
  return cuda::round<T, V>(y);
}

}  // namespace convnorm::batch_norm
