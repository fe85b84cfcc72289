// Mean and variance per channel, of pieces and then of all.
#pragma once

#include "cuda/statistics.cuh"
#include "ops/batch_norm/cuda/batch_norm_affine.cuh"

namespace convnorm::batch_norm {

template <class T, bool kRows, int V>
__global__ void __launch_bounds__(kThreads, 2)
    statistics_kernel(const T* x, __grid_constant__ const Plan plan, Piece* pieces) {
  using C = compute_t<T>;
  constexpr int K = kChannels<kRows, V>;
  __shared__ double shared1[kThreads * K], shared2[kThreads * K];
  __shared__ C origin[kRows ? kMostColumns<T> : 1];
  const Place place(plan, false);
  cuda::ThreadSums<C, K> sums;
  cuda::sum_thread<T, kRows, V>(sums, x, plan, place);

  // In rows lanes are apart, each with its columns; in planes all threads have the one channel.
  const int columns = kRows ? plan.lanes * K : 1, rows = kThreads * K / columns;
  if (kRows ? place.way == 0 : place.thread == 0)
    for (int k = 0; k < K; ++k) origin[kRows ? place.lane * K + k : 0] = sums.shift[k];
  __syncthreads();
  const double count = static_cast<double>(cuda::values_of<kRows, V>(plan, place));
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int column = kRows ? place.lane * K + k : 0;
    const double delta = static_cast<double>(sums.shift[k]) - origin[column];
    const int i = kRows ? place.way * columns + column : place.thread;
    shared1[i] = sums.s1[k] + count * delta;
    shared2[i] = sums.s2[k] + delta * (2 * sums.s1[k] + count * delta);
    if (count == 0) shared1[i] = shared2[i] = 0;
  }
  cuda::sum_rows(shared1, shared2, rows, columns, place.thread, kThreads);
  const std::int64_t first = place.channel * columns;
  const double all = static_cast<double>(plan.count(place.piece));
  for (int i = place.thread; i < columns && first + i < plan.channels; i += kThreads) {
    const double s1 = shared1[i], m2 = shared2[i] - s1 * s1 / all;
    pieces[plan.pair(place.piece, place.image) + first + i] = {origin[i] + s1 / all,
                                                               m2 < 0 ? 0.0 : m2};  // NaN stays
  }
}

static __global__ void merge_statistics_kernel(const Piece* pieces, __grid_constant__ const Plan plan,
                                               __grid_constant__ const PerChannel at) {
  __shared__ double shared1[kMergeLanes * kMergeWays], shared2[kMergeLanes * kMergeWays];
  const int lane = static_cast<int>(threadIdx.x) % kMergeLanes,
            way = static_cast<int>(threadIdx.x) / kMergeLanes;
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kMergeLanes + lane;
  const bool on = c < plan.channels;
  const double origin = on ? pieces[c].mean : 0;
  double s1 = 0, s2 = 0;
  if (on)
    for (std::int64_t i = way; i < plan.pieces(); i += kMergeWays) {
      const Piece piece = pieces[i * plan.channels + c];
      const double n = static_cast<double>(plan.count(i)), d = piece.mean - origin;
      s1 += n * d;
      s2 += piece.m2 + n * d * d;
    }
  shared1[threadIdx.x] = s1;
  shared2[threadIdx.x] = s2;
  cuda::sum_rows(shared1, shared2, kMergeWays, kMergeLanes, static_cast<int>(threadIdx.x),
                 kMergeLanes * kMergeWays);
  if (way != 0 || !on) return;
  const double all = static_cast<double>(plan.outer * plan.inner),
               m2 = shared2[lane] - shared1[lane] * shared1[lane] / all;
  cuda::write(at.mean, c, origin + shared1[lane] / all);
  cuda::write(at.var, c, m2 < 0 ? 0.0 : m2 / all);
}

}  // namespace convnorm::batch_norm
