// What tiles are made of: weights, in pairs of channels, and copies of an image's rows.
//
// A tile of b has 16 rows of 16 filters, each element the weights of two channels that follow each other:
// that is how the instruction wants them. Both copies turn squares of 16 x 16 such pairs in registers.
//
// Include after conv_tiles_plan.h and conv_tiles_shuffle.h.
#pragma once

namespace convnorm::conv {
namespace {

using Pairs = __m512i;  // 16 pairs of bfloat16

// 16 rows of 16 pairs, turned.
inline void turn_pairs(Pairs (&rows)[kTile]) {
  vec<float> square[kTile];
  for (int i = 0; i < kTile; ++i) square[i] = bits_as<vec<float>>(rows[i]);
  transpose<float>(square);
  for (int i = 0; i < kTile; ++i) rows[i] = bits_as<Pairs>(square[i]);
}

inline __mmask32 lanes32(std::int64_t n) {
  return n >= 32 ? ~__mmask32{0} : (__mmask32{1} << imax(0, n)) - 1;
}
inline __mmask16 lanes16(std::int64_t n) { return static_cast<__mmask16>(lanes32(imin(n, 16))); }

// Lanes of two vectors of 16 as pairs.
inline Pairs join(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

// The two tiles of 32 filters by 32 channels, from out[filter][channel] in rows of `ld`.
inline void pack_filters(const bf16* from, std::int64_t ld, std::int64_t filters, std::int64_t channels,
                         bf16* to) {
  for (std::int64_t half = 0; half < 2; ++half, to += kTileElements) {
    Pairs rows[kTile];
    for (std::int64_t i = 0; i < kTile; ++i) {
      const std::int64_t f = half * kTile + i;
      rows[i] = _mm512_maskz_loadu_epi16(f < filters ? lanes32(channels) : 0, from + f * ld);
    }
    turn_pairs(rows);
    for (std::int64_t i = 0; i < kTile; ++i) _mm512_store_si512(to + i * kDepth, rows[i]);
  }
}

// The same from in[channel][filter].
inline void pack_channels(const bf16* from, std::int64_t ld, std::int64_t filters, std::int64_t channels,
                          bf16* to) {
  for (std::int64_t i = 0; i < kTile; ++i) {
    const bf16* row = from + 2 * i * ld;
    for (std::int64_t half = 0; half < 2; ++half) {
      const __mmask16 lanes = lanes16(filters - half * kTile);
      const __m256i low = _mm256_maskz_loadu_epi16(2 * i < channels ? lanes : 0, row + half * kTile);
      const __m256i high =
          _mm256_maskz_loadu_epi16(2 * i + 1 < channels ? lanes : 0, row + ld + half * kTile);
      _mm512_store_si512(to + half * kTileElements + i * kDepth, join(low, high));
    }
  }
}

// Whether all taps of a channel follow each other, and channels those of the one before: 3x3, contiguous.
inline bool taps_are_dealt(const Dense& d, std::int64_t step) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  return d.axis[0].taps == 1 && h.taps == 3 && w.taps == 3 && w.weight_step == 1 && h.weight_step == 3 &&
         step == kDealt;
}

// All taps of 32 filters and 32 channels where taps lie innermost: apart[tap][row][32], rows the side that is
// farther apart in memory.
inline void part_taps(const Dense& d, const bf16* from, std::int64_t taps, std::int64_t row_step,
                      std::int64_t rows, std::int64_t step, std::int64_t count, bf16* apart) {
  const bool dealt = taps_are_dealt(d, step);
  for (std::int64_t r = 0; r < rows; ++r, from += row_step) {
    bf16* row = apart + r * kPair;
    if (dealt) {
      Pairs in[kDealt], out[kDealt];
      for (std::int64_t i = 0; i < kDealt; ++i)
        in[i] = _mm512_maskz_loadu_epi16(lanes32(count * kDealt - i * kDepth), from + i * kDepth);
      to_taps()(in, out);
      for (std::int64_t t = 0; t < kDealt; ++t) _mm512_store_si512(row + t * kPair * kPair, out[t]);
      continue;
    }
    for (std::int64_t t = 0; t < taps; ++t)
      for (std::int64_t i = 0; i < count; ++i)
        row[t * kPair * kPair + i] = from[weight_of_tap(d, t) + i * step];
  }
}

// The same of patches, whose terms lie where `terms` says.
inline void gather_terms(const bf16* from, std::int64_t step, std::int64_t filters, const std::int64_t* terms,
                         std::int64_t count, bf16* apart) {
  for (std::int64_t f = 0; f < filters; ++f)
    for (std::int64_t i = 0; i < count; ++i) apart[f * kPair + i] = from[f * step + terms[i]];
}

// Packed: [group][pair of tiles of filters][tap][block of channels][two tiles].
inline std::int64_t tiles_weight_elements(const Dense& d, const TilesPlan& p) {
  return d.groups * p.pairs * p.depth * 2 * kTileElements;
}

// 32 filters and 32 channels of all taps, `step` elements of `to` from tap to tap; `apart` has room for a
// square of each.
inline void pack_square(const Dense& d, const TilesPlan& p, const std::int64_t* terms, const bf16* from,
                        std::int64_t filters, std::int64_t channels, bf16* apart, bf16* to,
                        std::int64_t step) {
  const bool filters_inner = !p.patches && d.weight_out < d.weight_red;
  const bool direct = !p.patches && imin(d.weight_out, d.weight_red) == 1;
  if (p.patches)
    gather_terms(from, d.weight_out, filters, terms, channels, apart);
  else if (!direct && filters_inner)
    part_taps(d, from, p.taps, d.weight_red, channels, d.weight_out, filters, apart);
  else if (!direct)
    part_taps(d, from, p.taps, d.weight_out, filters, d.weight_red, channels, apart);
  for (std::int64_t t = 0; t < p.taps; ++t, to += step) {
    const bf16* at = direct ? from + weight_of_tap(d, t) : apart + t * kPair * kPair;
    if (filters_inner)
      pack_channels(at, direct ? d.weight_red : kPair, filters, channels, to);
    else
      pack_filters(at, direct ? d.weight_out : kPair, filters, channels, to);
  }
}

inline void pack_tile_weights(const Dense& d, const TilesPlan& p, const std::int64_t* terms, bf16* out) {
  parallel_for(d.groups * p.pairs * p.blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    bf16* apart = static_cast<bf16*>(scratch_bytes(Slot::local, p.taps * kPair * kPair * sizeof(bf16)));
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t block = i % p.blocks, pair = i / p.blocks % p.pairs, group = i / p.blocks / p.pairs;
      const std::int64_t k0 = pair * kPair, c0 = block * kDepth;
      const bf16* from = static_cast<const bf16*>(d.weight) + group * d.weight_group + k0 * d.weight_out +
                         (p.patches ? 0 : c0 * d.weight_red);
      bf16* to = out + ((group * p.pairs + pair) * p.depth + block) * 2 * kTileElements;
      pack_square(d, p, terms + c0, from, imin(kPair, d.out_c - k0), imin(kDepth, p.channels - c0), apart, to,
                  p.blocks * 2 * kTileElements);
    }
  });
}

// A row of the copy: positions [0, width) from source positions (i + low) * step + phase of `from`, which is
// null outside the image; channels in whole blocks.
struct CopyRow {
  const bf16* from;
  std::int64_t low, step, phase, source;  // along w
  std::int64_t stride, channel_stride, channels;
  std::int64_t width, pitch;
  bf16* to;

  std::int64_t at(std::int64_t i) const { return (i + low) * step + phase; }
  // Positions [begin, end) are inside the image.
  std::int64_t begin() const { return imin(width, imax(0, -floor_div(phase, step) - low)); }
  std::int64_t end() const {
    return imax(begin(), imin(width, floor_div(source - 1 - phase, step) + 1 - low));
  }
};

inline void copy_channels(const CopyRow& r, std::int64_t begin, std::int64_t end) {
  const std::int64_t padded = ceil_div(r.channels, kDepth) * kDepth;
  const bf16* from = r.from + r.at(begin) * r.stride;
  bf16* to = r.to + begin * r.pitch;
  for (std::int64_t i = begin; i < end; ++i, from += r.step * r.stride, to += r.pitch)
    for (std::int64_t c = 0; c < padded; c += kDepth)
      _mm512_store_si512(to + c, _mm512_maskz_loadu_epi16(lanes32(r.channels - c), from + c));
}

// 16 pixels of 32 channels at a time, turned in registers: pixels follow each other, or every other one.
inline void copy_planes(const CopyRow& r, std::int64_t begin, std::int64_t end) {
  for (std::int64_t c = 0; c < r.channels; c += kDepth)
    for (std::int64_t i = begin; i < end; i += kTile) {
      const std::int64_t count = imin(kTile, end - i), channels = imin(kDepth, r.channels - c);
      const bf16* from = r.from + r.at(i) + c * r.channel_stride;
      const auto pixels = [&](std::int64_t channel) {
        const bf16* at = from + channel * r.channel_stride;
        if (channel >= channels) return _mm256_setzero_si256();
        if (r.step == 1) return _mm256_maskz_loadu_epi16(lanes16(count), at);
        return _mm512_cvtepi32_epi16(_mm512_maskz_loadu_epi16(lanes32(2 * count - 1), at));
      };
      Pairs rows[kTile];
      for (std::int64_t k = 0; k < kTile; ++k) rows[k] = join(pixels(2 * k), pixels(2 * k + 1));
      turn_pairs(rows);
      for (std::int64_t k = 0; k < count; ++k) _mm512_store_si512(r.to + (i + k) * r.pitch + c, rows[k]);
    }
}

inline void copy_any(const CopyRow& r, std::int64_t begin, std::int64_t end) {
  const std::int64_t padded = ceil_div(r.channels, kDepth) * kDepth;
  for (std::int64_t i = begin; i < end; ++i)
    for (std::int64_t c = 0; c < padded; ++c)
      r.to[i * r.pitch + c] = c < r.channels ? r.from[r.at(i) * r.stride + c * r.channel_stride] : bf16{};
}

inline void copy_row(const CopyRow& r) {
  const std::int64_t begin = r.from ? r.begin() : r.width, end = r.from ? r.end() : r.width;
  const std::int64_t padded = ceil_div(r.channels, kDepth) * kDepth;
  const auto clear = [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t i = from; i < to; ++i) std::memset(r.to + i * r.pitch, 0, padded * sizeof(bf16));
  };
  clear(0, begin);
  clear(end, r.width);
  if (begin == end) return;
  if (r.channel_stride == 1)
    copy_channels(r, begin, end);
  else if (r.stride == 1 && r.step <= 2)
    copy_planes(r, begin, end);
  else
    copy_any(r, begin, end);
}

}  // namespace
}  // namespace convnorm::conv
