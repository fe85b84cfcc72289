// The products by AMX: up to 2 x 2 tiles of c over a block of the sum.
//
// A product takes 16 cycles, a tile that is loaded 8: with four products for four loads the loads hide behind
// them, as long as what they read is in L1 or comes from L2 at half its speed.
//
// Include after conv_tiles_sum.h.
#pragma once

namespace convnorm::conv {
namespace {

// All eight tiles whole: 16 rows of 64 bytes.
struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles are this thread's for its lifetime.
struct UsingTiles {
  UsingTiles() {
    const TileShapes shapes;
    _tile_loadconfig(&shapes);
  }
  ~UsingTiles() { _tile_release(); }
  UsingTiles(const UsingTiles&) = delete;
  UsingTiles& operator=(const UsingTiles&) = delete;
};

template <int kPixels, int kFilters>
[[gnu::noinline]] void multiply(const TileSum& s) {
  constexpr std::int64_t kNext = kTile * kTile, kRow = kTile * sizeof(float);
  if (s.first) {
    _tile_zero(0);
    if constexpr (kFilters > 1) _tile_zero(1);
    if constexpr (kPixels > 1) _tile_zero(2);
    if constexpr (kPixels > 1 && kFilters > 1) _tile_zero(3);
  } else {
    _tile_loadd(0, s.c, kRow);
    if constexpr (kFilters > 1) _tile_loadd(1, s.c + kNext, kRow);
    if constexpr (kPixels > 1) _tile_loadd(2, s.c + 2 * kNext, kRow);
    if constexpr (kPixels > 1 && kFilters > 1) _tile_loadd(3, s.c + 3 * kNext, kRow);
  }
  const bf16* b = s.b;
  for (std::int64_t j = 0; j < s.count; ++j, b += s.b_step) {
    const std::int64_t at = s.terms[j];
    _tile_loadd(4, s.a[0] + at, s.row_bytes);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kFilters > 1) {
      _tile_loadd(7, b + kTileElements, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kPixels > 1) {
      _tile_loadd(5, s.a[1] + at, s.row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kFilters > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, s.c, kRow);
  if constexpr (kFilters > 1) _tile_stored(1, s.c + kNext, kRow);
  if constexpr (kPixels > 1) _tile_stored(2, s.c + 2 * kNext, kRow);
  if constexpr (kPixels > 1 && kFilters > 1) _tile_stored(3, s.c + 3 * kNext, kRow);
}

}  // namespace
}  // namespace convnorm::conv
