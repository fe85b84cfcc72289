// V neighbouring elements of what max pooling records, in memory and as ints.
#pragma once

#include "cuda/image.cuh"
#include "cuda/vec.cuh"
#include "ops/max_pool/cuda/max_pool_problem.h"

namespace convnorm::max_pool {

template <int V>
__device__ inline void store_codes(Argmax kind, void* argmax, std::int64_t at, const int (&code)[V]) {
  if (kind == Argmax::offset8) {
    std::uint32_t word[V < 4 ? 1 : V / 4] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) word[v / 4] |= static_cast<std::uint32_t>(code[v]) << (v % 4 * 8);
    auto* to = static_cast<std::uint8_t*>(argmax) + at;
    if constexpr (V == 8)
      cuda::store_words(to, uint2{word[0], word[1]});
    else if constexpr (V == 4)
      cuda::store_words(to, word[0]);
    else
      *to = static_cast<std::uint8_t>(code[0]);
  } else if (kind == Argmax::offset32) {
#pragma unroll
    for (int v = 0; v < V; ++v) static_cast<std::int32_t*>(argmax)[at + v] = code[v];
  } else if (kind == Argmax::index64) {
#pragma unroll
    for (int v = 0; v < V; ++v) static_cast<std::int64_t*>(argmax)[at + v] = code[v];
  }
}

template <int V>
__device__ inline void load_codes(Argmax kind, const void* argmax, std::int64_t at, int (&code)[V]) {
  if (kind == Argmax::offset8) {
    std::uint32_t word[V < 4 ? 1 : V / 4] = {};
    const auto* from = static_cast<const std::uint8_t*>(argmax) + at;
    if constexpr (V == 8) {
      const uint2 u = cuda::load_words<uint2>(from);
      word[0] = u.x, word[1] = u.y;
    } else if constexpr (V == 4) {
      word[0] = cuda::load_words<std::uint32_t>(from);
    } else {
      word[0] = *from;
    }
#pragma unroll
    for (int v = 0; v < V; ++v) code[v] = static_cast<int>(word[v / 4] >> (v % 4 * 8) & 0xff);
  } else if (kind == Argmax::offset32) {
#pragma unroll
    for (int v = 0; v < V; ++v) code[v] = static_cast<const std::int32_t*>(argmax)[at + v];
  } else {  // positions of a plane have 31 bits; others are no position
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const std::int64_t wide = static_cast<const std::int64_t*>(argmax)[at + v];
      code[v] = wide >= 0 && wide >> 31 == 0 ? static_cast<int>(wide) : -1;
    }
  }
}

__device__ inline std::int64_t offset(std::int64_t n, std::int64_t c, const std::int64_t (&s)[kSpatial],
                                      const int (&at)[kSpatial]) {
  return n + c + at[0] * s[0] + at[1] * s[1] + at[2] * s[2];
}

}  // namespace convnorm::max_pool
