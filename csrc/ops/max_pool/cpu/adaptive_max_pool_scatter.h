// Values added at their indices in channels_last, with AVX-512: eight channels of one output at a time. Their
// places differ, so that sums are gathered, added to and scattered; outputs follow each other in row-major
// order. Task = one image and a slab of channels: few enough to clear it and find it in L2, yet many, since
// positions are often a multiple of the cache's stride apart.
#pragma once

#include "ops/max_pool/cpu/max_pool_kernel.h"

namespace convnorm::max_pool {
namespace {

constexpr int kAtOnce = 8;
constexpr std::int64_t kScatterSlab = 512;

inline void add_at(float* sums, __m512i place, __mmask8 on, const float* values) {
  const __m256 old = _mm512_mask_i64gather_ps(_mm256_setzero_ps(), on, place, sums, 4);
  _mm512_mask_i64scatter_ps(sums, on, place, _mm256_add_ps(old, _mm256_loadu_ps(values)), 4);
}
inline void add_at(double* sums, __m512i place, __mmask8 on, const double* values) {
  const __m512d old = _mm512_mask_i64gather_pd(_mm512_setzero_pd(), on, place, sums, 8);
  _mm512_mask_i64scatter_pd(sums, on, place, _mm512_add_pd(old, _mm512_loadu_pd(values)), 8);
}

template <class T>
void scatter_slab(const Params& p, std::int64_t channels, const T* values, const std::int64_t* indices,
                  T* to) {
  const std::int64_t positions = plane(p), step = p.input.s[2], whole = channels / kAtOnce * kAtOnce;
  const __m512i limit = _mm512_set1_epi64(positions), steps = _mm512_set1_epi64(step);
  const __m512i lane = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
  for (std::int64_t i = 0; i < positions; ++i) std::memset(to + i * step, 0, channels * sizeof(T));
  for (std::int64_t od = 0; od < p.out[0]; ++od)
    for (std::int64_t oh = 0; oh < p.out[1]; ++oh)
      for (std::int64_t ow = 0; ow < p.out[2]; ++ow) {
        const T* value = values + od * p.output.s[0] + oh * p.output.s[1] + ow * p.output.s[2];
        const std::int64_t* index = indices + od * p.argmax.s[0] + oh * p.argmax.s[1] + ow * p.argmax.s[2];
        for (std::int64_t k = 0; k < whole; k += kAtOnce) {
          const __m512i at = _mm512_loadu_si512(index + k);
          const __mmask8 inside = _mm512_cmplt_epu64_mask(at, limit);  // also false for negative ones
          add_at(to + k, _mm512_add_epi64(_mm512_mul_epu32(at, steps), lane), inside, value + k);
        }
        for (std::int64_t k = whole; k < channels; ++k)
          if (static_cast<std::uint64_t>(index[k]) < static_cast<std::uint64_t>(positions))
            to[index[k] * step + k] += value[k];
      }
}

template <class T>
void scatter_channels_of(const Params& p, const T* values, const std::int64_t* indices, T* to) {
  const std::int64_t slabs = ceil_div(p.c, kScatterSlab), channels = imin(kScatterSlab, p.c);
  const std::int64_t work = channels * (plane(p) + p.out[0] * p.out[1] * p.out[2]);
  parallel_for(p.n * slabs, ceil_div(32768, work + 1), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t n = t / slabs, c = t % slabs * kScatterSlab;
      scatter_slab(p, imin(kScatterSlab, p.c - c), values + n * p.output.n + c, indices + n * p.argmax.n + c,
                   to + n * p.input.n + c);
    }
  });
}

void scatter_channels(const Params& p, const void* values, const void* indices, void* to) {
  const auto* at = static_cast<const std::int64_t*>(indices);
  if (p.dtype == DType::f64)
    scatter_channels_of(p, static_cast<const double*>(values), at, static_cast<double*>(to));
  else
    scatter_channels_of(p, static_cast<const float*>(values), at, static_cast<float*>(to));
}

}  // namespace
}  // namespace convnorm::max_pool
