// Sums of values and squares, for means and variances (Welford 1962; Chan, Golub, LeVeque 1979).
//
// A thread sums d = x - m and d^2 about a shift m near its own values: in C over kUnroll vectors, then in
// double. m is the mean of its first values, so that sums lose nothing to the mean, and an outlier costs no
// more digits than it has itself. Threads, and then pieces, are merged in double about the shift of the
// first. Squares that leave float's range are summed again in double. Constants give exactly zero.
#pragma once

#include "cuda/walk.cuh"

namespace convnorm::cuda {

template <class C, int K>
struct ThreadSums {
  C shift[K];
  double s1[K], s2[K];
};

// Sums of squares between these bounds have lost nothing to float's range.
__device__ inline bool in_range(float, double s2) { return s2 > 1e-30 && s2 < 1e36; }
__device__ inline bool in_range(double, double) { return true; }

template <class T, bool kRows, int V, int K>
__device__ inline void first_shift(ThreadSums<compute_t<T>, K>& sums, const Raw<T, V> (&raw)[kUnroll],
                                   int count) {
  using C = compute_t<T>;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const C start = cuda::element(raw[0], k);
    C sum = 0;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (channel_of<kRows>(v) == k && u < count) sum += cuda::element(raw[u], v) - start;
    const C m = start + sum / static_cast<C>(count * (V / K));
    sums.shift[k] = m - m == 0 ? m : 0;  // a shift that is not finite would spoil finite values
  }
}

// All values of channel k of the thread again, in double.
template <class T, bool kRows, int V>
__device__ [[gnu::noinline]] double2 sum_in_double(const T* x, Walk<kRows, V> walk, int k, double shift) {
  double sum = 0, squares = 0;
  for (; walk.more(); walk.next())
    for (int v = kRows ? k : 0; v < (kRows ? k + 1 : V); ++v) {
      const double d = cuda::load1(x + walk.offset + v) - shift;
      sum += d;
      squares += d * d;
    }
  return {sum, squares};
}

struct KeepNothing {
  template <class Loaded>
  __device__ void operator()(const Loaded&, int) const {}
};

// keep(vectors, count) gets all that is loaded, in the order of the walk.
template <class T, bool kRows, int V, int K, class Keep = KeepNothing>
__device__ inline void sum_thread(ThreadSums<compute_t<T>, K>& sums, const T* x, const Plan& plan,
                                  Place place, Keep keep = {}) {
  using C = compute_t<T>;
#pragma unroll
  for (int k = 0; k < K; ++k) sums.shift[k] = 0, sums.s1[k] = sums.s2[k] = 0;
  Walk<kRows, V> walk(plan, place);
  for (bool first = true; walk.more(); first = false) {
    const Batch<T, kRows, V> batch(walk);
    Raw<T, V> raw[kUnroll];
    batch.load(raw, x);
    keep(raw, batch.count);
    if (first) first_shift<T, kRows>(sums, raw, batch.count);
    C s1[K] = {}, s2[K] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int k = channel_of<kRows>(v);
        const C d = u < batch.count ? cuda::element(raw[u], v) - sums.shift[k] : 0;
        s1[k] += d;
        s2[k] += d * d;
      }
#pragma unroll
    for (int k = 0; k < K; ++k) sums.s1[k] += s1[k], sums.s2[k] += s2[k];
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (in_range(C{}, sums.s2[k])) continue;
    const double2 again = sum_in_double<T, kRows>(x, Walk<kRows, V>(plan, place), k, sums.shift[k]);
    sums.s1[k] = again.x;
    sums.s2[k] = again.y;
  }
}

// How many values per channel the walk of another thread of the block has.
template <bool kRows, int V>
__device__ inline std::int64_t values_of(const Plan& plan, Place place) {
  const std::int64_t o = place.piece / plan.inner_pieces * plan.per_outer;
  const std::int64_t outers = o + plan.per_outer < plan.outer ? plan.per_outer : plan.outer - o;
  const std::int64_t mine = place.way < outers ? (outers - place.way + plan.ways - 1) / plan.ways : 0;
  if constexpr (kRows) return mine;
  const std::int64_t i = place.piece % plan.inner_pieces * plan.per_inner;
  const std::int64_t vectors = (i + plan.per_inner < plan.inner ? plan.per_inner : plan.inner - i) / V;
  return place.lane < vectors ? mine * ((vectors - place.lane + plan.lanes - 1) / plan.lanes) * V : 0;
}

}  // namespace convnorm::cuda
