// The products by vectors: 8 pixels by up to 32 filters of c in registers.
//
// A pair of channels of a pixel, in all lanes, times a row of a tile of b: two products and two sums a lane,
// in one instruction. 16 sums hide its latency of 6 cycles at two a cycle; 10 loads go with them.
//
// Include after conv_tiles_sum.h.
#pragma once

namespace convnorm::conv {
namespace {

struct UsingTiles {};

inline constexpr std::int64_t kHalf = kTile / 2;

template <int kFilters>
inline void multiply_rows(const TileSum& s, const bf16* a, float* c) {
  constexpr std::int64_t kNext = kTile * kTile;
  __m512 sum[kHalf][kFilters];
  for (std::int64_t m = 0; m < kHalf; ++m)
    for (int n = 0; n < kFilters; ++n)
      sum[m][n] = s.first ? _mm512_setzero_ps() : _mm512_load_ps(c + n * kNext + m * kTile);
  const std::int64_t row = s.row_bytes / std::int64_t(sizeof(bf16));
  const bf16* b = s.b;
  for (std::int64_t j = 0; j < s.count; ++j, b += s.b_step) {
    const bf16* pair = a + s.terms[j];
    for (std::int64_t k = 0; k < kTile; ++k, pair += 2) {
      __m512bh of[kFilters];
      for (int n = 0; n < kFilters; ++n)
        of[n] = bits_as<__m512bh>(_mm512_load_si512(b + n * kTileElements + k * kDepth));
#pragma GCC unroll 8
      for (std::int64_t m = 0; m < kHalf; ++m) {
        int both;
        std::memcpy(&both, pair + m * row, sizeof both);
        const auto x = bits_as<__m512bh>(_mm512_set1_epi32(both));
        for (int n = 0; n < kFilters; ++n) sum[m][n] = _mm512_dpbf16_ps(sum[m][n], x, of[n]);
      }
    }
  }
  for (std::int64_t m = 0; m < kHalf; ++m)
    for (int n = 0; n < kFilters; ++n) _mm512_store_ps(c + n * kNext + m * kTile, sum[m][n]);
}

template <int kPixels, int kFilters>
[[gnu::noinline]] void multiply(const TileSum& s) {
  const std::int64_t half = kHalf * s.row_bytes / std::int64_t(sizeof(bf16));
  for (int i = 0; i < 2 * kPixels; ++i)
    multiply_rows<kFilters>(s, s.a[i / 2] + i % 2 * half,
                            s.c + i / 2 * 2 * kTile * kTile + i % 2 * kHalf * kTile);
}

}  // namespace
}  // namespace convnorm::conv
