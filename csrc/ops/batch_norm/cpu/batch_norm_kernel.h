// What both methods of batch norm share: walking a run of elements in vectors, per-channel coefficients,
// access to operands, and the bodies' table. Included by one small file per instruction set.
//
// A run is walked in groups of four vectors; what is left of it over the last whole vector is done by a
// vector that overlaps the one before (elementwise work repeats the same values, sums mask the lanes that
// were counted).
#pragma once

#include "cpu/welford.h"

namespace convnorm::batch_norm {
namespace {

#define CONVNORM_INLINE __attribute__((always_inline))

// A whole vector at p. `stream` stores around the cache: for outputs that would only evict what is still
// needed.
struct Whole {
  bool stream = false;
  template <class T>
  auto get(const T* p) const {
    return load(p);
  }
  template <class T>
  void put(T* p, vec<compute_t<T>> v) const {
    if constexpr (sizeof(T) == sizeof(compute_t<T>)) {
#if defined(__x86_64__)
      if (stream) {
#if CONVNORM_VECTOR_BYTES == 64
        _mm512_stream_ps(reinterpret_cast<float*>(p), bits_as<__m512>(v));
#elif CONVNORM_VECTOR_BYTES == 32
        _mm256_stream_ps(reinterpret_cast<float*>(p), bits_as<__m256>(v));
#else
        _mm_stream_ps(reinterpret_cast<float*>(p), bits_as<__m128>(v));
#endif
        return;
      }
#endif
    }
    store(p, v);
  }
};

// The first n lanes of a vector at p: runs shorter than one vector.
struct Part {
  std::int64_t n;
  template <class T>
  auto get(const T* p) const {
    return load_n(p, n);
  }
  template <class T>
  void put(T* p, vec<compute_t<T>> v) const {
    store_n(p, v, n);
  }
};

// 0, 1, 2, ... in the lanes.
template <class C>
inline ivec<C> lane_numbers() {
  ivec<C> number;
  for (int i = 0; i < kLanes<C>; ++i) number[i] = i;
  return number;
}

// All ones in lanes at and above, or below, n.
template <class C>
inline ivec<C> lanes_from(std::int64_t n) {
  return lane_numbers<C>() >= (ivec<C>{} + static_cast<std::int32_t>(n));
}
template <class C>
inline ivec<C> lanes_below(std::int64_t n) {
  return ~lanes_from<C>(n);
}

template <class C>
inline vec<C> masked(vec<C> v, ivec<C> on) {
  return bits_as<vec<C>>(bits_as<ivec<C>>(v) & on);
}

// f(way, i, access, on): elements i .. i + lanes, of which the lanes in `on` were not visited before.
template <class C, int kWays = 4, class F>
CONVNORM_INLINE inline void each_vector(std::int64_t length, bool stream, F f) {
  constexpr std::int64_t L = kLanes<C>;
  const ivec<C> all = ivec<C>{} - 1;
  std::int64_t i = 0;
  if constexpr (kWays == 4) {
    for (; i + 4 * L <= length; i += 4 * L) {
      f(0, i, Whole{stream}, all);
      f(1, i + L, Whole{stream}, all);
      f(2, i + 2 * L, Whole{stream}, all);
      f(3, i + 3 * L, Whole{stream}, all);
    }
  }
  for (; i + L <= length; i += L) f(0, i, Whole{stream}, all);
  if (i == length) return;
  if (length >= L) {
    f(0, length - L, Whole{}, lanes_from<C>(L - (length - i)));
  } else {
    f(0, std::int64_t{0}, Part{length}, lanes_below<C>(length));
  }
}

// Streaming pays once the output is far larger than the caches, and needs whole aligned vectors.
inline constexpr std::int64_t kStreamBytes = 8 << 20;

template <class T>
inline bool can_stream(const T* p, std::int64_t length) {
  return sizeof(T) >= 4 && reinterpret_cast<std::uintptr_t>(p) % CONVNORM_VECTOR_BYTES == 0 &&
         length * static_cast<std::int64_t>(sizeof(T)) >= 256;
}

// Streaming stores are ordered before whatever other threads read next.
inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class V>
inline V relu(V y) {
  return vmax(V{}, y);  // in this order NaN stays NaN
}

// y = (x - center) scale + shift and xhat = (x - center) inv + rest; center is the mean rounded to C, and
// what the rounding cut off is in shift and rest.
template <class C>
struct Coefficients {
  C center, inv, rest, scale, shift;
};

template <class C>
inline Coefficients<C> coefficients(double mean, double var, double eps, double weight, double bias) {
  const double r = 1 / __builtin_sqrt(var + eps);
  const C center = static_cast<C>(mean);
  const double low = mean - center;
  return {center, static_cast<C>(r), static_cast<C>(-low * r), static_cast<C>(weight * r),
          static_cast<C>(bias - low * weight * r)};
}

template <class C, class P>
inline Coefficients<C> coefficients(const P& p, std::int64_t c) {
  return coefficients<C>(p.mean[c], p.var[c], p.eps, p.weight ? p.weight[c] : 1, p.bias ? p.bias[c] : 0);
}

// grad_x = g slope - xhat along - level.
template <class C>
struct Slopes {
  C slope, along, level;
};

template <class C>
inline Slopes<C> slopes(const Backward& p, std::int64_t c) {
  const double slope = (p.weight ? p.weight[c] : 1) / __builtin_sqrt(p.var[c] + p.eps);
  const double share = p.train ? slope / static_cast<double>(p.x.values()) : 0;
  return {static_cast<C>(slope), static_cast<C>(p.train ? share * p.grad_weight[c] : 0),
          static_cast<C>(p.train ? share * p.grad_bias[c] : 0)};
}

enum class Mask { none, from_x, from_out };

inline Mask mask_of(const Backward& p) {
  return !p.relu ? Mask::none : p.out.data ? Mask::from_out : Mask::from_x;
}

// Work memory handed out piece by piece, each aligned to a cache line.
struct Arena {
  char* next;
  template <class T>
  T* take(std::int64_t n) {
    T* p = reinterpret_cast<T*>(next);
    next += (n * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
    return p;
  }
};

}  // namespace
}  // namespace convnorm::batch_norm

#include "ops/batch_norm/cpu/batch_norm_planes.h"
#include "ops/batch_norm/cpu/batch_norm_rows.h"
#include "ops/batch_norm/cpu/batch_norm_rows_backward.h"

namespace convnorm::batch_norm {
namespace {

template <class Rule>
inline void by_dtype(DType dtype, Rule rule) {
  switch (dtype) {
    case DType::f64:
      return rule(double{});
    case DType::bf16:
      return rule(bf16{});
    case DType::f16:
      return rule(f16{});
    default:
      return rule(float{});
  }
}

template <template <class, bool, bool> class Method>
void run_forward(const Forward& p) {
  by_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (p.residual.data) return p.relu ? Method<T, true, true>(p).run() : Method<T, true, false>(p).run();
    return p.relu ? Method<T, false, true>(p).run() : Method<T, false, false>(p).run();
  });
}

template <template <class, Mask> class Method>
void run_backward(const Backward& p) {
  by_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    switch (mask_of(p)) {
      case Mask::none:
        return Method<T, Mask::none>(p).run();
      case Mask::from_x:
        return Method<T, Mask::from_x>(p).run();
      case Mask::from_out:
        return Method<T, Mask::from_out>(p).run();
    }
  });
}

}  // namespace
}  // namespace convnorm::batch_norm
