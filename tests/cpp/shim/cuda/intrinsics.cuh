// csrc/cuda/intrinsics.cuh in plain C++. Vectors that are not aligned end the test, as they would a kernel.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace convnorm::cuda {

inline float as_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
inline double as_double(std::uint32_t low, std::uint32_t high) {
  return std::bit_cast<double>(std::uint64_t{high} << 32 | low);
}
inline std::uint32_t low_bits(double x) {
  return static_cast<std::uint32_t>(std::bit_cast<std::uint64_t>(x));
}
inline std::uint32_t high_bits(double x) {
  return static_cast<std::uint32_t>(std::bit_cast<std::uint64_t>(x) >> 32);
}

inline float f32_of_f16(std::uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
inline std::uint32_t pack_f16(float low, float high) {
  const auto half = [](float x) {
    return std::uint32_t{std::bit_cast<std::uint16_t>(static_cast<_Float16>(x))};
  };
  return half(high) << 16 | half(low);
}
inline std::uint32_t pack_bf16(float low, float high) {
  const auto half = [](float x) -> std::uint32_t {
    if (x != x) return 0x7fff;
    const std::uint32_t bits = bits_of(x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return half(high) << 16 | half(low);
}

inline void expect_aligned(const void* p, std::size_t size) {
  if (reinterpret_cast<std::uintptr_t>(p) % size == 0) return;
  std::printf("an access of %zu bytes at %p is not aligned\n", size, p);
  std::abort();
}
template <class Words>
Words load_words(const void* from) {
  expect_aligned(from, sizeof(Words));
  Words words;
  std::memcpy(&words, from, sizeof(words));
  return words;
}
template <class Words>
void store_words(void* to, const Words& words) {
  expect_aligned(to, sizeof(Words));
  std::memcpy(to, &words, sizeof(words));
}

}  // namespace convnorm::cuda
