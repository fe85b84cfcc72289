// From sums of float to the result: bias, residual, ReLU, one rounding.
//
// A tile's 16 pixels are pieces of one or more rows of outputs, with positions between them that are none.
//
// Include after conv_tiles_pack.h.
#pragma once

namespace convnorm::conv {
namespace {

// `length` outputs in lanes from `lane`, the first at `at` in a channel of the destination.
struct Piece {
  std::int64_t lane, length, at;
};

struct PixelTile {
  const bf16* a;
  const Piece* pieces;
  std::int64_t count;
};

struct TileResult {
  const Dense* d;
  bf16* to;            // of the image's group
  std::int64_t first;  // filter of the first column
  std::int64_t filters;
  const float* bias;  // of that filter; or null
};

inline vec<float> finish(const Dense& d, vec<float> x) { return d.relu ? relu(x) : x; }
inline __m256i narrow(vec<float> x) { return bits_as<__m256i>(_mm512_cvtneps_pbh(bits_as<__m512>(x))); }
inline vec<float> widen(__m256i x) {
  return bits_as<vec<float>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// The two tiles of 32 filters of a pixel, rounded.
inline Pairs narrow(vec<float> low, vec<float> high) {
  return bits_as<Pairs>(_mm512_cvtne2ps_pbh(bits_as<__m512>(high), bits_as<__m512>(low)));
}

// Filters at distance 1: 32 of them at a time, pixel by pixel.
inline void write_channels(const TileResult& r, const PixelTile& tile, const float* c) {
  const Dense& d = *r.d;
  const __mmask32 lanes = lanes32(r.filters);
  const vec<float> bias0 = r.bias ? load(r.bias) : vec<float>{},
                   bias1 = r.bias ? load(r.bias + kTile) : bias0;
  for (std::int64_t i = 0; i < tile.count; ++i) {
    const Piece& piece = tile.pieces[i];
    bf16* to = r.to + r.first + piece.at;
    const float* row = c + piece.lane * kTile;
    for (std::int64_t l = 0; l < piece.length; ++l, to += d.axis[2].out_stride, row += kTile) {
      vec<float> low = load(row) + bias0, high = load(row + kTile * kTile) + bias1;
      if (d.residual) {
        const Pairs rest = _mm512_maskz_loadu_epi16(lanes, residual_at(d, to));
        low += widen(_mm512_castsi512_si256(rest));
        high += widen(_mm512_extracti64x4_epi64(rest, 1));
      }
      const Pairs x = narrow(finish(d, low), finish(d, high));
      _mm512_mask_storeu_epi16(to, lanes, x);
    }
  }
}

// 16 pixels of one filter, next to each other or at a distance.
inline void write_pixels(const Dense& d, const PixelTile& tile, bf16* channel, __m256i x) {
  const std::int64_t step = d.axis[2].out_stride;
  for (std::int64_t i = 0; i < tile.count; ++i) {
    const Piece& piece = tile.pieces[i];
    if (step == 1) {
      const auto lanes = static_cast<__mmask16>(lanes16(piece.length) << piece.lane);
      _mm256_mask_storeu_epi16(channel + piece.at - piece.lane, lanes, x);
      continue;
    }
    alignas(32) bf16 lanes[kTile];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), x);
    for (std::int64_t l = 0; l < piece.length; ++l) channel[piece.at + l * step] = lanes[piece.lane + l];
  }
}

// Pairs of filters are turned after they are rounded.
inline void write_planes(const TileResult& r, const PixelTile& tile, const float* c) {
  const vec<float> bias0 = r.bias ? load(r.bias) : vec<float>{},
                   bias1 = r.bias ? load(r.bias + kTile) : bias0;
  Pairs square[kTile];
  for (int i = 0; i < kTile; ++i)
    square[i] = narrow(finish(*r.d, load(c + i * kTile) + bias0),
                       finish(*r.d, load(c + (kTile + i) * kTile) + bias1));
  turn_pairs(square);
  for (std::int64_t k = 0; k < r.filters; ++k) {
    bf16* channel = r.to + (r.first + k) * r.d->dst_c;
    const Pairs x = k % 2 ? _mm512_srli_epi32(square[k / 2], 16) : square[k / 2];
    write_pixels(*r.d, tile, channel, _mm512_cvtepi32_epi16(x));
  }
}

// The residual of 16 pixels of a filter.
inline vec<float> residual_pixels(const Dense& d, const PixelTile& tile, const bf16* channel) {
  const bf16* from = residual_at(d, channel);
  vec<float> x{};
  for (std::int64_t i = 0; i < tile.count; ++i) {
    const Piece& piece = tile.pieces[i];
    for (std::int64_t l = 0; l < piece.length; ++l)
      x[piece.lane + l] = load1(from + piece.at + l * d.axis[2].out_stride);
  }
  return x;
}

// With a residual, sums are turned: it is added before they are rounded.
inline void write_planes_on(const TileResult& r, const PixelTile& tile, const float* c) {
  for (std::int64_t k = 0; k < r.filters; k += kTile, c += kTile * kTile) {
    vec<float> square[kTile];
    for (int i = 0; i < kTile; ++i) square[i] = load(c + i * kTile);
    transpose<float>(square);
    for (std::int64_t i = 0; i < imin(kTile, r.filters - k); ++i) {
      bf16* channel = r.to + (r.first + k + i) * r.d->dst_c;
      const vec<float> x = square[i] + (r.bias ? r.bias[k + i] : 0) + residual_pixels(*r.d, tile, channel);
      write_pixels(*r.d, tile, channel, narrow(finish(*r.d, x)));
    }
  }
}

inline void write_tile(const TileResult& r, const PixelTile& tile, const float* c) {
  if (r.d->dst_c == 1) return write_channels(r, tile, c);
  r.d->residual ? write_planes_on(r, tile, c) : write_planes(r, tile, c);
}

}  // namespace
}  // namespace convnorm::conv
