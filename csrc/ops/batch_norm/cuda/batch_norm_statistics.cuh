// Mean and variance per channel, of pieces and then of all.
#pragma once

#include "cuda/statistics.cuh"
#include "ops/batch_norm/cuda/batch_norm_affine.cuh"

namespace convnorm::batch_norm {

// Shared memory of a block that makes the statistics of a piece, and of one that merges pieces.
template <class T, bool kRows, int V>
struct Scratch {
  static constexpr int kSums = kThreads * kChannels<kRows, V>, kMerge = kMergeLanes * kMergeWays;
  double one[kSums > kMerge ? kSums : kMerge], two[kSums > kMerge ? kSums : kMerge];
  compute_t<T> origin[kRows ? kMostColumns<T> : 1];
};

template <class T, bool kRows, int V, class Shared, class Keep = cuda::KeepNothing>
__device__ inline void piece_statistics(const T* x, const Plan& plan, Place place, Piece* pieces,
                                        Shared& shared, Keep keep = {}) {
  using C = compute_t<T>;
  constexpr int K = kChannels<kRows, V>;
  cuda::ThreadSums<C, K> sums;
  cuda::sum_thread<T, kRows, V>(sums, x, plan, place, keep);

  // In rows lanes are apart, each with its columns; in planes all threads have the one channel.
  const int columns = kRows ? plan.lanes * K : 1, rows = kThreads * K / columns;
  if (kRows ? place.way == 0 : place.thread == 0)
    for (int k = 0; k < K; ++k) shared.origin[kRows ? place.lane * K + k : 0] = sums.shift[k];
  __syncthreads();
  const double count = static_cast<double>(cuda::values_of<kRows, V>(plan, place));
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int column = kRows ? place.lane * K + k : 0;
    const double delta = static_cast<double>(sums.shift[k]) - shared.origin[column];
    const int i = kRows ? place.way * columns + column : place.thread;
    shared.one[i] = sums.s1[k] + count * delta;
    shared.two[i] = sums.s2[k] + delta * (2 * sums.s1[k] + count * delta);
    if (count == 0) shared.one[i] = shared.two[i] = 0;
  }
  cuda::sum_rows(shared.one, shared.two, rows, columns, place.thread, kThreads);
  const std::int64_t first = place.channel * columns;
  const double all = static_cast<double>(plan.count(place.piece));
  for (int i = place.thread; i < columns && first + i < plan.channels; i += kThreads) {
    const double s1 = shared.one[i], m2 = shared.two[i] - s1 * s1 / all;
    pieces[plan.pair(place.piece, place.image) + first + i] = {shared.origin[i] + s1 / all,
                                                               m2 < 0 ? 0.0 : m2};  // NaN stays
  }
}

template <class T, bool kRows, int V>
__global__ void __launch_bounds__(kThreads, 2)
    statistics_kernel(const T* x, __grid_constant__ const Plan plan, Piece* pieces) {
  constexpr int K = kChannels<kRows, V>;
  __shared__ struct {
    double one[kThreads * K], two[kThreads * K];
    compute_t<T> origin[kRows ? kMostColumns<T> : 1];
  } shared;
  piece_statistics<T, kRows, V>(x, plan, Place(plan, false), pieces, shared);
}

// Merges the pieces of kMergeLanes channels and writes their statistics. A pair (lane, way) has every
// kMergeWays-th piece; a block of fewer threads has several pairs per thread, and the same sums.
__device__ inline void merge_channels(const Piece* pieces, const Plan& plan, const PerChannel& at,
                                      std::int64_t first, double* one, double* two, int threads) {
  const auto thread = static_cast<int>(threadIdx.x);
  for (int pair = thread; pair < kMergeLanes * kMergeWays; pair += threads) {
    const std::int64_t c = first + pair % kMergeLanes;
    double s1 = 0, s2 = 0;
    const double origin = c < plan.channels ? pieces[c].mean : 0;
    for (std::int64_t i = pair / kMergeLanes; c < plan.channels && i < plan.pieces(); i += kMergeWays) {
      const Piece piece = pieces[i * plan.channels + c];
      const double n = static_cast<double>(plan.count(i)), d = piece.mean - origin;
      s1 += n * d;
      s2 += piece.m2 + n * d * d;
    }
    one[pair] = s1;
    two[pair] = s2;
  }
  cuda::sum_rows(one, two, kMergeWays, kMergeLanes, thread, threads);
  const std::int64_t c = first + thread;
  if (thread >= kMergeLanes || c >= plan.channels) return;
  const double all = static_cast<double>(plan.outer * plan.inner),
               m2 = two[thread] - one[thread] * one[thread] / all;
  cuda::write(at.mean, c, pieces[c].mean + one[thread] / all);
  cuda::write(at.var, c, m2 < 0 ? 0.0 : m2 / all);
}

static __global__ void merge_statistics_kernel(const Piece* pieces, __grid_constant__ const Plan plan,
                                               __grid_constant__ const PerChannel at) {
  __shared__ double one[kMergeLanes * kMergeWays], two[kMergeLanes * kMergeWays];
  merge_channels(pieces, plan, at, static_cast<std::int64_t>(blockIdx.x) * kMergeLanes, one, two,
                 kMergeLanes * kMergeWays);
}

}  // namespace convnorm::batch_norm
