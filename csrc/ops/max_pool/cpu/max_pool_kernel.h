// The compare-and-blend that every forward kernel is made of, and the table that an instruction set exports.
//
// A vector of best values goes with a vector of codes in integer lanes of the same width; a code is narrowed
// to a byte or widened to an index only when it is stored.
#pragma once

#include "cpu/arena.h"
#include "cpu/vec.h"

namespace convnorm::max_pool {
namespace {

template <class C>
using code_t = std::conditional_t<sizeof(C) == 8, std::int64_t, std::int32_t>;

template <class C>
constexpr C kLowest = -std::numeric_limits<C>::infinity();

template <class C>
struct Best {
  vec<C> value;
  ivec<C> code;
};

template <bool kRecord, class C>
inline __attribute__((always_inline)) void take(Best<C>& best, vec<C> x, ivec<C> code) {
  const auto stays = ~(x > best.value) & (x == x);  // one operation fewer than with "wins"
  best.value = stays ? best.value : x;
  if constexpr (kRecord) best.code = stays ? best.code : code;
}

template <class C>
inline ivec<C> splat_code(std::int64_t code) {
  return ivec<C>{} + static_cast<code_t<C>>(code);
}

template <class C>
inline ivec<C> load_code(const code_t<C>* p) {
  ivec<C> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// Codes in memory of type A, converted from and to lanes.
template <class C, class A>
inline void store_codes(A* p, ivec<C> v) {
  typedef A Stored __attribute__((vector_size(kLanes<C> * sizeof(A))));
  const Stored s = __builtin_convertvector(v, Stored);
  __builtin_memcpy(p, &s, sizeof(s));
}
template <class C, class A>
inline ivec<C> load_codes(const A* p) {
  typedef A Stored __attribute__((vector_size(kLanes<C> * sizeof(A))));
  Stored s;
  __builtin_memcpy(&s, p, sizeof(s));
  return __builtin_convertvector(s, ivec<C>);
}

// Bytes by hand where the compiler would go lane by lane.
#if defined(__x86_64__) && CONVNORM_VECTOR_BYTES == 64
template <>
inline void store_codes<float, std::uint8_t>(std::uint8_t* p, ivec<float> v) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
}
template <>
inline void store_codes<double, std::uint8_t>(std::uint8_t* p, ivec<double> v) {
  _mm_storel_epi64((__m128i*)p, _mm512_cvtepi64_epi8((__m512i)v));
}
template <>
inline ivec<float> load_codes<float, std::uint8_t>(const std::uint8_t* p) {
  return (ivec<float>)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
template <>
inline ivec<double> load_codes<double, std::uint8_t>(const std::uint8_t* p) {
  return (ivec<double>)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)p));
}
#elif defined(__x86_64__) && CONVNORM_VECTOR_BYTES == 32
template <>
inline void store_codes<float, std::uint8_t>(std::uint8_t* p, ivec<float> v) {
  const __m256i first_bytes = _mm256_set1_epi32(0x0c080400);
  const __m256i packed = _mm256_shuffle_epi8((__m256i)v, first_bytes);
  _mm_storel_epi64((__m128i*)p,
                   _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1)));
}
template <>
inline ivec<float> load_codes<float, std::uint8_t>(const std::uint8_t* p) {
  return (ivec<float>)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
template <>
inline ivec<double> load_codes<double, std::uint8_t>(const std::uint8_t* p) {
  std::int32_t bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
  return (ivec<double>)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes));
}
#elif defined(__x86_64__) && CONVNORM_VECTOR_BYTES == 16
template <>
inline void store_codes<float, std::uint8_t>(std::uint8_t* p, ivec<float> v) {
  const __m128i words = _mm_packs_epi32((__m128i)v, (__m128i)v);
  const std::int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
  __builtin_memcpy(p, &bytes, sizeof(bytes));
}
template <>
inline ivec<float> load_codes<float, std::uint8_t>(const std::uint8_t* p) {
  std::int32_t bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
  const __m128i words = _mm_unpacklo_epi8(_mm_cvtsi32_si128(bytes), _mm_setzero_si128());
  return (ivec<float>)_mm_unpacklo_epi16(words, _mm_setzero_si128());
}
#endif

// Calls f with a null pointer of the recorded type; nullptr where nothing is recorded.
template <class F>
inline void with_argmax(Argmax kind, F&& f) {
  switch (kind) {
    case Argmax::offset8:
      f(static_cast<std::uint8_t*>(nullptr));
      break;
    case Argmax::offset32:
      f(static_cast<std::int32_t*>(nullptr));
      break;
    case Argmax::index64:
      f(static_cast<std::int64_t*>(nullptr));
      break;
    case Argmax::none:
      f(static_cast<void*>(nullptr));
      break;
  }
}

}  // namespace
}  // namespace convnorm::max_pool

#include "ops/max_pool/cpu/max_pool_spill.h"
#include "ops/max_pool/cpu/max_pool_channels.h"
#include "ops/max_pool/cpu/max_pool_pairs.h"
#include "ops/max_pool/cpu/max_pool_planes.h"
#include "ops/max_pool/cpu/max_pool_rows.h"
#include "ops/max_pool/cpu/max_pool_backward_channels.h"
#include "ops/max_pool/cpu/max_pool_backward_rows.h"
#include "ops/max_pool/cpu/max_pool_backward_tiles.h"
