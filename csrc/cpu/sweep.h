// What the norms share beside welford.h: walking a run of elements in vectors, the moments of a run, and
// cutting work. Include below a cpu/target_*.h, after vec.h.
//
// A run is walked in groups of four vectors; what is left of it over the last whole vector is done by a
// vector that overlaps the one before (elementwise work repeats the same values, sums mask the lanes that
// were counted).
#pragma once

#include "cpu/arena.h"
#include "cpu/stream.h"
#include "cpu/welford.h"

namespace convnorm {
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
    if constexpr (kStream && sizeof(T) == sizeof(compute_t<T>))
      stream(p, v);
    else
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

// All ones in lanes at and above, or below, n.
template <class C>
inline ivec<C> lanes_from(std::int64_t n) {
  ivec<C> number;
  for (int i = 0; i < kLanes<C>; ++i) number[i] = i;
  return number >= (ivec<C>{} + static_cast<std::int32_t>(n));
}
template <class C>
inline ivec<C> lanes_below(std::int64_t n) {
  return ~lanes_from<C>(n);
}

template <class C>
inline vec<C> masked(vec<C> v, ivec<C> on) {
  return bits_as<vec<C>>(bits_as<ivec<C>>(v) & on);
}

// Whether a backward's write fetches what it reads next. With vectors of a line each that is as many loads
// again as the work has, and the hardware's own fetching suffices.
inline constexpr bool kFetch = CONVNORM_VECTOR_BYTES < 64;

// f(way, i, access, on): elements i .. i + lanes, of which the lanes in `on` were not visited before. way
// counts 0 1 2 3 within a group of four, and is kAlone outside.
inline constexpr int kAlone = 4;

// What is left from element i on: less than a group, or all of a short run.
template <class C, bool kStream = false, class F>
CONVNORM_INLINE inline void each_vector_from(std::int64_t i, std::int64_t length, F f) {
  constexpr std::int64_t L = kLanes<C>;
  for (; i + L <= length; i += L) f(kAlone, i, Whole<kStream>{}, ivec<C>{} - 1);
  if (i == length) return;
  if (length >= L) {
    f(kAlone, length - L, Whole<>{}, lanes_from<C>(L - (length - i)));
  } else {
    f(kAlone, std::int64_t{0}, Part{length}, lanes_below<C>(length));
  }
}

template <class C, int kWays = 4, bool kStream = false, class F>
CONVNORM_INLINE inline void each_vector(std::int64_t length, F f) {
  constexpr std::int64_t L = kLanes<C>;
  const ivec<C> all = ivec<C>{} - 1;
  std::int64_t i = 0;
  if constexpr (kWays == 4) {
    for (; i + 4 * L <= length; i += 4 * L) {
      f(0, i, Whole<kStream>{}, all);
      f(1, i + L, Whole<kStream>{}, all);
      f(2, i + 2 * L, Whole<kStream>{}, all);
      f(3, i + 3 * L, Whole<kStream>{}, all);
    }
  }
  each_vector_from<C, kStream>(i, length, f);
}

// The same, where `stream` is known at run time only.
template <class C, int kWays = 4, class F>
CONVNORM_INLINE inline void each_vector(std::int64_t length, bool stream, F f) {
  stream ? each_vector<C, kWays, true>(length, f) : each_vector<C, kWays, false>(length, f);
}

// --- the moments of a contiguous run
// ------------------------------------------------------------------------------

inline constexpr std::int64_t kSegment = 4096;  // elements summed before a merge: at most 128 terms a lane

// Sums of x - shift and of its square.
struct ShiftedSums {
  double s1, s2;
};

template <class A, class T>
CONVNORM_INLINE inline ShiftedSums shifted_sums(const T* x, std::int64_t n, double shift) {
  using C = compute_t<T>;
  BlockSums<C, A> sums(shift);
  each_vector<C>(n, [&](int way, std::int64_t i, auto access, ivec<C> on)
                        CONVNORM_INLINE { sums.add(way, access.get(x + i), on); });
  return {static_cast<double>(sums.total(sums.s1)), static_cast<double>(sums.total(sums.s2))};
}

// Again in double, when squares have left float's range.
template <class T>
__attribute__((noinline)) ShiftedSums shifted_sums_wide(const T* x, std::int64_t n, double shift) {
  return shifted_sums<double>(x, n, shift);
}

// A value near the mean: the mean of the first n/32 elements, at least 32. The mean of k of n values is
// within sqrt(n/k) standard deviations of theirs, so the sums about it keep their digits.
template <class T>
CONVNORM_INLINE inline compute_t<T> first_shift(const T* x, std::int64_t n) {
  using C = compute_t<T>;
  constexpr std::int64_t kLeast = 4 * kLanes<float>;
  const C first = load1(x);
  vec<C> sum[kAlone + 1] = {};
  n = imin(n, imax(kLeast, n / 32));
  each_vector<C>(n, [&](int way, std::int64_t i, auto access, ivec<C> on)
                        CONVNORM_INLINE { sum[way] += masked<C>(access.get(x + i) - first, on); });
  const C mean =
      first + fold<kLanes<C>, C>((sum[0] + sum[1]) + (sum[2] + sum[3]) + sum[kAlone]) / static_cast<C>(n);
  return is_finite(mean) ? mean : first;
}

// Of a run of any length, segment by segment.
template <class T>
Moments run_moments(const T* x, std::int64_t n) {
  using C = compute_t<T>;
  Moments total;
  for (std::int64_t i = 0; i < n; i += kSegment) {
    const std::int64_t length = imin(n - i, kSegment);
    const C shift = i == 0 ? first_shift(x, length) : static_cast<C>(total.mean);
    ShiftedSums sums = shifted_sums<C>(x + i, length, shift);
    if (!in_range(static_cast<C>(sums.s2))) sums = shifted_sums_wide(x + i, length, shift);
    merge(total, moments(static_cast<double>(length), shift, sums.s1, sums.s2));
  }
  return total;
}

// Of up to kBatch runs of at most a segment, one after the other in memory: all first shifts, all sums, all
// divisions, because a single run would wait for each of them. mean and var have kBatch places.
inline constexpr std::int64_t kBatch = 8;
inline constexpr std::int64_t kBatchSize = 4096;  // elements of a batch: half of L1

inline std::int64_t batch_of(std::int64_t size) { return imin(kBatch, imax(1, kBatchSize / size)); }

template <class T>
CONVNORM_INLINE inline void batch_moments(const T* x, std::int64_t runs, std::int64_t size, double* mean,
                                          double* var) {
  using C = compute_t<T>;
  double shift[kBatch] = {}, s1[kBatch] = {}, s2[kBatch] = {};
  for (std::int64_t r = 0; r < runs; ++r) shift[r] = first_shift(x + r * size, size);
  bool good = true;
  for (std::int64_t r = 0; r < runs; ++r) {
    const ShiftedSums sums = shifted_sums<C>(x + r * size, size, shift[r]);
    s1[r] = sums.s1, s2[r] = sums.s2;
    good &= in_range(static_cast<C>(sums.s2));
  }
  for (std::int64_t r = 0; r < runs && !good; ++r) {
    if (in_range(static_cast<C>(s2[r]))) continue;
    const ShiftedSums sums = shifted_sums_wide(x + r * size, size, shift[r]);
    s1[r] = sums.s1, s2[r] = sums.s2;
  }
  const vec<double> n = splat<double>(static_cast<double>(size));
  for (std::int64_t i = 0; i < kBatch; i += kLanes<double>) {
    const vec<double> sum = load(s1 + i), off = sum / n, m2 = load(s2 + i) - off * sum;
    store(mean + i, load(shift + i) + off);
    store(var + i, (m2 < 0 ? vec<double>{} : m2) / n);
  }
}

inline vec<double> vsqrt(vec<double> v) {
#if defined(__x86_64__) && CONVNORM_VECTOR_BYTES == 64
  return bits_as<vec<double>>(_mm512_sqrt_pd(bits_as<__m512d>(v)));
#elif defined(__x86_64__) && CONVNORM_VECTOR_BYTES == 32
  return bits_as<vec<double>>(_mm256_sqrt_pd(bits_as<__m256d>(v)));
#elif defined(__x86_64__)
  return bits_as<vec<double>>(_mm_sqrt_pd(bits_as<__m128d>(v)));
#else
  for (int i = 0; i < kLanes<double>; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
#endif
}

// xhat = (x - center) inv + rest for kMost means at once, so that their roots and divisions overlap; center
// is the mean rounded to C, and rest what the rounding cut off.
template <class C, int kMost>
struct Standardise {
  C center[kMost], inv[kMost], rest[kMost];

  // Lanes i .. i + kLanes<double>.
  CONVNORM_INLINE inline void set(std::int64_t i, vec<double> mean, vec<double> var, double eps) {
    typedef C V __attribute__((vector_size(kLanes<double> * sizeof(C))));
    const vec<double> r = 1.0 / vsqrt(var + eps);
    const V near = __builtin_convertvector(mean, V), scale = __builtin_convertvector(r, V);
    const V low = __builtin_convertvector((__builtin_convertvector(near, vec<double>) - mean) * r, V);
    __builtin_memcpy(center + i, &near, sizeof(V));
    __builtin_memcpy(inv + i, &scale, sizeof(V));
    __builtin_memcpy(rest + i, &low, sizeof(V));
  }

  void set(const double* mean, const double* var, double eps, std::int64_t n) {
    for (std::int64_t i = 0; i < n; i += kLanes<double>) {
      const std::int64_t some = imin(n - i, kLanes<double>);
      some == kLanes<double> ? set(i, load(mean + i), load(var + i), eps)
                             : set(i, load_n(mean + i, some), load_n(var + i, some), eps);
    }
  }
};

// --- work
// -----------------------------------------------------------------------------------------------------------

inline constexpr std::int64_t kEnoughTasks = 64;       // with fewer, tasks are cut into chunks ...
inline constexpr std::int64_t kChunk = 16 * kSegment;  // ... of at least so many elements
inline constexpr std::int64_t kGrain = 32768;          // elements that are worth a thread's attention

// Into how many chunks each of `tasks` tasks of so many elements is cut: by shape alone.
inline std::int64_t chunks_of(std::int64_t tasks, std::int64_t elements) {
  return tasks >= kEnoughTasks ? 1 : imin(ceil_div(kEnoughTasks, tasks), imax(1, elements / kChunk));
}

// n parameters of any dtype as C, in `room`; `missing` where there are none.
template <class C>
inline const C* widened(const void* values, DType dtype, std::int64_t n, C missing, C* room) {
  if (values && dtype == (sizeof(C) == 8 ? DType::f64 : DType::f32)) return static_cast<const C*>(values);
  for (std::int64_t i = 0; i < n && !values; ++i) room[i] = missing;
  if (values)
    dispatch(dtype, [&](auto t) {
      const auto* from = static_cast<const decltype(t)*>(values);
      for (std::int64_t i = 0; i < n; ++i) room[i] = static_cast<C>(load1(from + i));
    });
  return room;
}

}  // namespace
}  // namespace convnorm
