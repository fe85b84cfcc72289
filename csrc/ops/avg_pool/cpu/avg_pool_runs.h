// Global average pooling of dense NCHW planes: each plane is one short run, and the runs follow each other.
//
//   task   = planes; as many at once as a vector has lanes. Each is summed in its own register, with the last
//            vector masked where it overlaps the one before it; one transpose adds up the lanes of all
//
// Runs are at most 32 vectors long, which is as long as a chain of additions may be (avg_pool.h).
#pragma once

#include "cpu/planes.h"

namespace convnorm::avg_pool {
namespace {

// The sums of planes q, q + 1, ... as the lanes of one vector.
template <class T, class C = compute_t<T>>
inline __attribute__((always_inline)) vec<C> sum_runs(const T* run, std::int64_t n, ivec<C> rest) {
  constexpr int lanes = kLanes<C>;
  vec<C> v[lanes];
  const std::int64_t whole = n / lanes * lanes, last = n - lanes;
#pragma GCC unroll 16
  for (int l = 0; l < lanes; ++l) {
    const vec<C> end = load(run + l * n + last);
    v[l] = rest ? end : vec<C>{};
  }
  for (std::int64_t x = 0; x < whole; x += lanes) {
#pragma GCC unroll 16
    for (int l = 0; l < lanes; ++l) v[l] += load(run + l * n + x);
  }
  transpose<C>(v);
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) v[l] += v[l + half];
  return v[0];
}

template <class T>
void forward_runs_of(const Params& p, const T* input, T* output) {
  using C = compute_t<T>;
  constexpr int lanes = kLanes<C>;
  const std::int64_t n = p.in[2], planes = p.n * p.c;
  const C divisor = static_cast<C>(count(p, 0, 0) * count(p, 1, 0) * count(p, 2, 0));
  ivec<C> rest;  // lanes of the last vector that are not in the one before it
  for (int l = 0; l < lanes; ++l) rest[l] = l >= lanes - n % lanes ? -1 : 0;
  parallel_for(ceil_div(planes, lanes), ceil_div(32768, lanes * n),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t group = begin; group < end; ++group) {
                   const std::int64_t q =
                       imin(group * lanes, planes - lanes);  // the last group overlaps the one before it
                   store(output + q, sum_runs(input + q * n, n, rest) / divisor);
                 }
               });
}

void forward_runs(const Params& p, const void* input, void* output) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    forward_runs_of(p, static_cast<const T*>(input), static_cast<T*>(output));
  });
}

}  // namespace
}  // namespace convnorm::avg_pool
