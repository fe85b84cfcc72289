// What both methods of batch norm share: walking a run of elements in vectors, work memory, and the bodies'
// table. Included by one small file per instruction set.
//
// A run is walked in groups of four vectors; what is left of it over the last whole vector is done by a
// vector that overlaps the one before (elementwise work repeats the same values, sums mask the lanes that
// were counted).
#pragma once

#include "cpu/welford.h"

namespace convnorm::batch_norm {
namespace {

#define CONVNORM_INLINE __attribute__((always_inline))

// A whole vector at p. kStream stores around the cache: for outputs that would only evict what is still
// needed.
template <bool kStream = false>
struct Whole {
  template <class T>
  auto get(const T* p) const {
    return load(p);
  }
  template <class T>
  void put(T* p, vec<compute_t<T>> v) const {
#if defined(__x86_64__)
    if constexpr (kStream) {
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

template <class I>
inline bool all_lanes(I on) {
  bool all = true;
  for (std::size_t i = 0; i < sizeof(I) / sizeof(on[0]); ++i) all &= on[i] != 0;
  return all;
}

// f(way, i, access, on): elements i .. i + lanes, of which the lanes in `on` were not visited before. way
// counts 0 1 2 3 within a group of four, and is kAlone outside.
inline constexpr int kAlone = 4;

// What is left from element i on: less than a group, or all of a short run.
template <class C, class F>
CONVNORM_INLINE inline void each_vector_from(std::int64_t i, std::int64_t length, F f) {
  constexpr std::int64_t L = kLanes<C>;
  for (; i + L <= length; i += L) f(kAlone, i, Whole{}, ivec<C>{} - 1);
  if (i == length) return;
  if (length >= L) {
    f(kAlone, length - L, Whole{}, lanes_from<C>(L - (length - i)));
  } else {
    f(kAlone, std::int64_t{0}, Part{length}, lanes_below<C>(length));
  }
}

template <class C, bool kStream, class F>
CONVNORM_INLINE inline void each_vector(std::int64_t length, F f) {
  constexpr std::int64_t L = kLanes<C>;
  const ivec<C> all = ivec<C>{} - 1;
  std::int64_t i = 0;
  for (; i + 4 * L <= length; i += 4 * L) {
    f(0, i, Whole<kStream>{}, all);
    f(1, i + L, Whole<kStream>{}, all);
    f(2, i + 2 * L, Whole<kStream>{}, all);
    f(3, i + 3 * L, Whole<kStream>{}, all);
  }
  each_vector_from<C>(i, length, f);
}

template <class C, class F>
CONVNORM_INLINE inline void each_vector(std::int64_t length, bool stream, F f) {
  stream ? each_vector<C, true>(length, f) : each_vector<C, false>(length, f);
}

// For sums: the ways walk four quarters of a long run side by side. From memory, four streams keep half as
// many more bytes in flight than one; within a page they only hide the order from the hardware's prefetch.
inline constexpr std::int64_t kQuartered = 2048;  // elements

template <class C, class F>
CONVNORM_INLINE inline void each_vector_in_quarters(std::int64_t length, F f) {
  constexpr std::int64_t L = kLanes<C>;
  const std::int64_t groups = length / (4 * L);
  const bool apart = length >= kQuartered;
  const std::int64_t way = apart ? groups * L : L, step = apart ? L : 4 * L;
  const ivec<C> all = ivec<C>{} - 1;
  for (std::int64_t k = 0, i = 0; k < groups; ++k, i += step) {
    f(0, i, Whole{}, all);
    f(1, i + way, Whole{}, all);
    f(2, i + 2 * way, Whole{}, all);
    f(3, i + 3 * way, Whole{}, all);
  }
  each_vector_from<C>(groups * 4 * L, length, f);
}

// Streaming pays once all operands together are larger than a core's share of the caches, and needs whole
// aligned vectors.
inline constexpr std::int64_t kStreamBytes = 16 << 20;

template <class T>
inline bool worth_streaming(const NormView& x, int operands) {
  return operands * x.values() * x.channels * static_cast<std::int64_t>(sizeof(T)) >= kStreamBytes;
}

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

#include "ops/batch_norm/cpu/batch_norm_channels.h"
#include "ops/batch_norm/cpu/batch_norm_planes.h"
#include "ops/batch_norm/cpu/batch_norm_planes_backward.h"
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
