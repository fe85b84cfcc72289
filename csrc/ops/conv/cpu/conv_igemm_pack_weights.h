// Packing for the implicit GEMM: weights, and whatever else is turned from rows into panels of lanes.
//
// Include after conv_igemm_pack.h.
#pragma once

namespace convnorm::conv {
namespace {

// n x lanes elements from rows src + o * row_stride to dst[i * step + o]: squares are turned in registers. A
// square's stores may reach past `lanes` into the next step; those are written afterwards (hence the last
// lanes first, and the last step by the plain loop). The rows lie far apart, more of them than the hardware
// follows: each load asks for what its row has four vectors on.
template <class S, class C>
void transpose_lanes(const S* src, std::int64_t row_stride, std::int64_t lanes, std::int64_t n, C* dst,
                     std::int64_t step) {
  constexpr int L = kLanes<C>;
  std::int64_t i = 0;
  for (; i + L < n; i += L)
    for (std::int64_t o = (lanes - 1) / L * L; o >= 0; o -= L) {
      vec<C> square[L];
      for (std::int64_t r = 0; r < L; ++r) {
        const S* from = src + (o + r) * row_stride + i;
        if (o + r < lanes) __builtin_prefetch(from + 4 * L);
        square[r] = o + r < lanes ? load(from) : vec<C>{};
      }
      transpose<C>(square);
      for (int r = 0; r < L; ++r) store(dst + (i + r) * step + o, square[r]);
    }
  if (2 * (n - i) > L) {  // most of a square: taps of a 3x3 window
    for (std::int64_t o = (lanes - 1) / L * L; o >= 0; o -= L) {
      vec<C> square[L];
      for (std::int64_t r = 0; r < L; ++r)
        square[r] = o + r < lanes ? load_n(src + (o + r) * row_stride + i, n - i) : vec<C>{};
      transpose<C>(square);
      for (std::int64_t r = 0; r < n - i; ++r)
        store_n(dst + (i + r) * step + o, square[r], imin(L, lanes - o));
    }
    return;
  }
  for (; i < n; ++i)
    for (std::int64_t o = 0; o < lanes; ++o) dst[i * step + o] = load1(src + o * row_stride + i);
}

// One filter tap (or, where taps follow channels without a gap, all of them): n steps of the sum for `lanes`
// filters.
template <class S, class C>
void pack_weight_run(const S* src, std::int64_t out_stride, std::int64_t stride, std::int64_t lanes,
                     std::int64_t n, std::int64_t width, C* dst, std::int64_t step) {
  if (stride == 1 && step == width) return transpose_lanes(src, out_stride, lanes, n, dst, step);
  for (std::int64_t i = 0; i < n; ++i) {
    if (out_stride == 1)
      copy_run(dst + i * step, src + i * stride, lanes);
    else
      for (std::int64_t o = 0; o < lanes; ++o) dst[i * step + o] = load1(src + i * stride + o * out_stride);
  }
}

// Weights of which neither filters nor channels lie side by side: a few channels at a time, all of their
// taps, which share lines. Where a channel's filters are a short stretch (the gradient by input), those of
// the next channels are far apart, and are asked for.
template <class S, class C>
void pack_weight_rows(const Dense& p, const Block& b, const S* base, std::int64_t lanes, C* dst,
                      std::int64_t tap_step, std::int64_t channel_step) {
  constexpr std::int64_t line = 64 / sizeof(S), kAheadLines = 16, kFew = 8;
  const std::int64_t stretch = lanes * p.weight_out;
  const std::int64_t ahead = stretch <= kAheadLines * line ? stretch : 0;
  for (std::int64_t c = b.c0; c < b.c1; c += kFew, dst += kFew * channel_step) {
    const S* row = base + c * p.weight_red;
    const std::int64_t few = imin(kFew, b.c1 - c);
    for (std::int64_t j = kFew; j < kFew + few; ++j)
      for (std::int64_t i = 0; i < ahead; i += line) __builtin_prefetch(row + j * p.weight_red + i);
    for (std::int64_t t = b.tap0; t < b.tap1; ++t) {
      const S* at = row + weight_of_tap(p, t);
      C* to = dst + (t - b.tap0) * tap_step;
      for (std::int64_t j = 0; j < few; ++j)
        for (std::int64_t o = 0; o < lanes; ++o)
          to[j * channel_step + o] = load1(at + j * p.weight_red + o * p.weight_out);
    }
  }
}

// A channel's taps follow each other in memory,
inline bool taps_follow(const Dense& p) {
  const Axis* a = p.axis;
  return (a[2].taps == 1 || a[2].weight_step == 1) && (a[1].taps == 1 || a[1].weight_step == a[2].taps) &&
         (a[0].taps == 1 || a[0].weight_step == a[2].taps * a[1].taps);
}
// and a block has all of them.
inline bool taps_in_one_piece(const Dense& p, const Block& b) {
  return b.tap1 - b.tap0 == tap_count(p) && taps_follow(p);
}

// Taps, then channels, of weights that lie the other way round (contiguous ones for a channels_last image).
// Tap by tap each line would be read for every tap of it: here all taps of the channels [c0, c1) are read as
// they lie, turned in squares, and each goes to its place: to[tap] is where the first channel's is.
inline constexpr std::int64_t kMostScattered = 128;  // taps

inline bool taps_scatter(const Dense& p) {
  const std::int64_t taps = tap_count(p);
  return taps > 1 && taps <= kMostScattered && p.weight_red == taps && taps_follow(p);
}

template <class S, class C>
void scatter_taps(const S* src, std::int64_t out_stride, std::int64_t lanes, std::int64_t taps,
                  std::int64_t channels, std::int64_t width, C* const* to) {
  constexpr std::int64_t L = kLanes<C>;
  const std::int64_t n = taps * channels;
  for (std::int64_t o = 0; o < lanes; o += L) {
    const std::int64_t some = imin(L, lanes - o);
    for (std::int64_t i = 0, tap = 0, at = o; i < n; i += L) {
      const std::int64_t rest = imin(L, n - i);
      vec<C> square[L];
      for (std::int64_t r = 0; r < L; ++r) {
        const S* from = src + (o + r) * out_stride + i;
        if (r < some) __builtin_prefetch(from + 4 * L);
        square[r] = r >= some ? vec<C>{} : rest == L ? load(from) : load_n(from, rest);
      }
      transpose<C>(square);
      for (std::int64_t r = 0; r < rest; ++r) {
        some == L ? store(to[tap] + at, square[r]) : store_n(to[tap] + at, square[r], some);
        if (++tap == taps) tap = 0, at += width;
      }
    }
  }
}

// `lanes` output channels from `first` of one block, transposed to panel[k][width].
template <class S, class C>
void pack_weight_panel(const Dense& p, std::int64_t group, const Block& b, bool channel_rows,
                       std::int64_t first, std::int64_t lanes, std::int64_t width, C* dst) {
  const S* base = static_cast<const S*>(p.weight) + group * p.weight_group + first * p.weight_out;
  const std::int64_t channels = b.c1 - b.c0, taps = b.tap1 - b.tap0;
  if (lanes < width)
    for (std::int64_t i = 0; i < channels * taps * width; ++i) dst[i] = C(0);
  if (!channel_rows && taps > 1 && taps_in_one_piece(p, b)) {  // k = (channel, tap)
    if (p.weight_red == taps || channels == 1)
      return pack_weight_run(base + b.c0 * p.weight_red, p.weight_out, 1, lanes, channels * taps, width, dst,
                             width);
    for (std::int64_t c = 0; c < channels; ++c)
      pack_weight_run(base + (b.c0 + c) * p.weight_red, p.weight_out, 1, lanes, taps, width,
                      dst + c * taps * width, width);
    return;
  }
  const std::int64_t tap_step = (channel_rows ? channels : 1) * width;
  const std::int64_t channel_step = (channel_rows ? 1 : taps) * width;
  if (p.weight_red != 1 && p.weight_out != 1)
    return pack_weight_rows<S>(p, b, base, lanes, dst, tap_step, channel_step);
  for (std::int64_t t = 0; t < taps; ++t) {
    const S* at = base + weight_of_tap(p, b.tap0 + t);
    pack_weight_run(at + b.c0 * p.weight_red, p.weight_out, p.weight_red, lanes, channels, width,
                    dst + t * tap_step, channel_step);
  }
}

}  // namespace
}  // namespace convnorm::conv
