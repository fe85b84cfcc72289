// One vector type for every instruction set: GCC/Clang vector extensions of CONVNORM_VECTOR_BYTES.
//
// Include after a cpu/target_*.h. Everything is in an anonymous namespace, so that each instruction set keeps
// its own copy. Arithmetic, comparisons and `mask ? a : b` are the compiler's own operators on Vec<T>::V; a*b
// + c becomes one FMA where the target has it. Loads and stores convert: 16-bit storage is widened to float
// while loading and rounded once (to nearest even) while storing.
#pragma once

namespace convnorm {
namespace {

template <class T>
inline constexpr int kLanes = CONVNORM_VECTOR_BYTES / sizeof(T);

inline std::int64_t imin(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t imax(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// N lanes of T. The integer twin I is what comparisons give and bit operations take.
template <class T, int N = kLanes<T>>
struct Vec;

template <int N>
struct Vec<float, N> {
  typedef float V __attribute__((vector_size(N * 4)));
  typedef std::int32_t I __attribute__((vector_size(N * 4)));
  typedef std::uint32_t U __attribute__((vector_size(N * 4)));
  typedef std::uint16_t H __attribute__((vector_size(N * 2)));
};

template <int N>
struct Vec<double, N> {
  typedef double V __attribute__((vector_size(N * 8)));
  typedef std::int64_t I __attribute__((vector_size(N * 8)));
  typedef std::uint64_t U __attribute__((vector_size(N * 8)));
};

template <class T>
using vec = typename Vec<T>::V;
template <class T>
using ivec = typename Vec<T>::I;

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class C>
inline vec<C> splat(C x) {
  return x - vec<C>{};  // broadcast; the subtraction of zero is folded away
}

// --- 16-bit conversions, any number of lanes
// ------------------------------------------------------------------

template <class F>  // F = Vec<float, N>
inline typename F::V widen_bf16(typename F::H h) {
  return bits_as<typename F::V>(__builtin_convertvector(h, typename F::U) << 16);
}

template <class F>
inline typename F::H narrow_bf16(typename F::V x) {
  const auto u = bits_as<typename F::U>(x);
  const auto rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return __builtin_convertvector(x == x ? rounded : rounded * 0u + 0x7fc0u, typename F::H);
}

// IEEE half -> float: put the exponent where float has it, scale by 2^112, mend inf and NaN.
template <class F>
inline typename F::V widen_f16(typename F::H h) {
  const auto u = __builtin_convertvector(h, typename F::U);
  const auto magnitude = (u & 0x7fffu) << 13;
  const auto scaled = bits_as<typename F::U>(bits_as<typename F::V>(magnitude) * 0x1p112f);
  const auto special = scaled | 0x7f800000u;
  const auto finite = bits_as<typename F::I>(magnitude) < 0x0f800000;
  return bits_as<typename F::V>((finite ? scaled : special) | ((u & 0x8000u) << 16));
}

// float -> IEEE half, to nearest even. Subnormal halves are rounded by adding 0.5f, whose last bit is 2^-24.
template <class F>
inline typename F::H narrow_f16(typename F::V x) {
  const auto u = bits_as<typename F::U>(x);
  const auto magnitude = u & 0x7fffffffu;
  const auto signed_magnitude = bits_as<typename F::I>(magnitude);
  const auto normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const auto tiny = bits_as<typename F::U>(bits_as<typename F::V>(magnitude) + 0.5f) - 0x3f000000u;
  auto half = signed_magnitude < 0x38800000 ? tiny : normal;
  half = signed_magnitude >= 0x477ff000 ? half * 0u + 0x7c00u : half;
  half = signed_magnitude > 0x7f800000 ? half * 0u + 0x7e00u : half;
  return __builtin_convertvector(half | ((u >> 16) & 0x8000u), typename F::H);
}

// --- loads and stores
// -----------------------------------------------------------------------------------------

template <class C>
inline vec<C> load(const C* p) {
  vec<C> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
template <class C>
inline void store(C* p, vec<C> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

inline vec<float> load(const bf16* p) {
  Vec<float>::H h;
  __builtin_memcpy(&h, p, sizeof(h));
  return widen_bf16<Vec<float>>(h);
}
inline void store(bf16* p, vec<float> v) {
  const auto h = narrow_bf16<Vec<float>>(v);
  __builtin_memcpy(p, &h, sizeof(h));
}

inline vec<float> load(const f16* p) {
#if CONVNORM_VECTOR_BYTES == 64
  return (vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif CONVNORM_VECTOR_BYTES == 32
  return (vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec<float>::H h;
  __builtin_memcpy(&h, p, sizeof(h));
  return widen_f16<Vec<float>>(h);
#endif
}
inline void store(f16* p, vec<float> v) {
#if CONVNORM_VECTOR_BYTES == 64
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif CONVNORM_VECTOR_BYTES == 32
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  const auto h = narrow_f16<Vec<float>>(v);
  __builtin_memcpy(p, &h, sizeof(h));
#endif
}

// The first n lanes (0 <= n <= lanes); the others are zero. Never touches memory past p[n-1].
template <class T>
inline vec<compute_t<T>> load_n(const T* p, std::int64_t n) {
  T buffer[kLanes<compute_t<T>>] = {};
  for (std::int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}
template <class T>
inline void store_n(T* p, vec<compute_t<T>> v, std::int64_t n) {
  T buffer[kLanes<compute_t<T>>];
  store(buffer, v);
  for (std::int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

#if defined(__x86_64__) && CONVNORM_VECTOR_BYTES == 32
template <>
inline vec<float> load_n(const float* p, std::int64_t n) {
  static constexpr std::int32_t kMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return (vec<float>)_mm256_maskload_ps(p,
                                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMasks + 8 - n)));
}
#endif

#if defined(__x86_64__) && CONVNORM_VECTOR_BYTES == 64
template <>
inline vec<float> load_n(const float* p, std::int64_t n) {
  return (vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
template <>
inline void store_n(float* p, vec<float> v, std::int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
}
#endif

// One element, with the same conversions.
inline float load1(const float* p) { return *p; }
inline double load1(const double* p) { return *p; }
inline float load1(const bf16* p) { return bits_as<float>(std::uint32_t(p->bits) << 16); }
inline float load1(const f16* p) {
  typedef Vec<float, 4> F;
  return widen_f16<F>(F::H{p->bits, 0, 0, 0})[0];
}
inline void store1(float* p, float x) { *p = x; }
inline void store1(double* p, double x) { *p = x; }
inline void store1(bf16* p, float x) {
  p->bits = narrow_bf16<Vec<float, 4>>(Vec<float, 4>::V{x, 0, 0, 0})[0];
}
inline void store1(f16* p, float x) { p->bits = narrow_f16<Vec<float, 4>>(Vec<float, 4>::V{x, 0, 0, 0})[0]; }

// --- arithmetic that needs a name
// -----------------------------------------------------------------------------

template <class V>
inline V vmax(V a, V b) {
  return a > b ? a : b;
}
template <class V>
inline V vmin(V a, V b) {
  return a < b ? a : b;
}

template <class V>
inline V relu(V x) {
  return vmax(V{}, x);  // in this order NaN stays NaN
}

// Exchanges the upper `half` lanes of every 2*half of a with the lower ones of b. The masks are constants by
// construction: computed in a loop they would cost more than the exchange.
template <class C, int half, int... l>
inline void exchange(vec<C>& a, vec<C>& b, std::integer_sequence<int, l...>) {
  constexpr int L = kLanes<C>;
  const vec<C> low = __builtin_shuffle(a, b, ivec<C>{(l & half ? L + l - half : l)...});
  b = __builtin_shuffle(a, b, ivec<C>{(l & half ? L + l : l + half)...});
  a = low;
}

// rows[i][j] <-> rows[j][i] of a square of lanes x lanes, in log2(lanes) rounds of pairwise exchanges.
template <class C, int half = 1>
inline void transpose(vec<C> (&rows)[kLanes<C>]) {
  constexpr int L = kLanes<C>;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i)
    if (!(i & half)) exchange<C, half>(rows[i], rows[i + half], std::make_integer_sequence<int, L>{});
  if constexpr (2 * half < L) transpose<C, 2 * half>(rows);
}

template <class C>
inline constexpr auto kEachLane = std::make_integer_sequence<int, kLanes<C>>{};

// Lanes 0 2 4 ... and 1 3 5 ... of a followed by b, and back: a0 b0 a1 b1 ... in two vectors. `each` is
// kEachLane.
template <class V, int... i>
inline V even_lanes(V a, V b, [[maybe_unused]] std::integer_sequence<int, i...> each) {
  return __builtin_shufflevector(a, b, (2 * i)...);
}
template <class V, int... i>
inline V odd_lanes(V a, V b, [[maybe_unused]] std::integer_sequence<int, i...> each) {
  return __builtin_shufflevector(a, b, (2 * i + 1)...);
}
template <class V, int... i>
inline V interleave_low(V a, V b, [[maybe_unused]] std::integer_sequence<int, i...> each) {
  return __builtin_shufflevector(a, b, (i / 2 + i % 2 * int(sizeof...(i)))...);
}
template <class V, int... i>
inline V interleave_high(V a, V b, [[maybe_unused]] std::integer_sequence<int, i...> each) {
  return __builtin_shufflevector(a, b, (i / 2 + int(sizeof...(i)) / 2 + i % 2 * int(sizeof...(i)))...);
}

// Sum of the lanes, always in the same order: halves are folded onto each other.
template <class C>
inline C lane_sum(vec<C> v) {
  C lane[kLanes<C>];
  store(lane, v);
  for (int half = kLanes<C> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

}  // namespace
}  // namespace convnorm
