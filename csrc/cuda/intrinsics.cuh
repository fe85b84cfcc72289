// What C++ has no word for: conversions of 16-bit floats, and memory in one instruction of 2 to 16 bytes.
// tests/cpp/shim/cuda/intrinsics.cuh says the same in C++, for kernels that are run by the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace convnorm::cuda {

__device__ inline float as_float(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ inline std::uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ inline double as_double(std::uint32_t low, std::uint32_t high) {
  return __hiloint2double(static_cast<int>(high), static_cast<int>(low));
}
__device__ inline std::uint32_t low_bits(double x) { return static_cast<std::uint32_t>(__double2loint(x)); }
__device__ inline std::uint32_t high_bits(double x) { return static_cast<std::uint32_t>(__double2hiint(x)); }

__device__ inline float f32_of_f16(std::uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

// Rounded to nearest even, `low` in the low half.
__device__ inline std::uint32_t pack_f16(float low, float high) {
  std::uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
__device__ inline std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// Addresses are multiples of the size.
template <class Words>
__device__ inline Words load_words(const void* from) {
  return *static_cast<const Words*>(from);
}
template <class Words>
__device__ inline void store_words(void* to, const Words& words) {
  *static_cast<Words*>(to) = words;
}

}  // namespace convnorm::cuda
