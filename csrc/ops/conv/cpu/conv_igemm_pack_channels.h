// Packing for the implicit GEMM, rows of channels: P[pixel][k] with k = (tap, channel), row length ldk; or,
// instead of copies, a table of pointers into the image.
//
// Include after conv_igemm_pack.h.
#pragma once

namespace convnorm::conv {
namespace {

// Taps tap0..tap1 of one window row for one pixel. Where neighbouring taps and channels follow each other in
// memory (dilation 1, one group), all of them are one run.
template <class S, class C>
inline void pack_channel_taps(const Dense& p, const S* row, std::int64_t w, std::int64_t tap0,
                              std::int64_t tap1, std::int64_t channels, bool joined, C* dst) {
  const Axis& a = p.axis[2];
  const std::int64_t first = w * a.step + a.offset;
  if (joined) {
    const std::int64_t lo = imin(tap1, imax(tap0, -first)), hi = imax(lo, imin(tap1, a.source - first));
    if (lo > tap0) zero(dst, (lo - tap0) * channels);
    copy_run(dst + (lo - tap0) * channels, row + (first + lo) * a.source_stride, (hi - lo) * channels);
    if (hi < tap1) zero(dst + (hi - tap0) * channels, (tap1 - hi) * channels);
    return;
  }
  for (std::int64_t t = tap0; t < tap1; ++t, dst += channels) {
    const std::int64_t at = first + t * a.offset_step;
    if (at < 0 || at >= a.source)
      zero(dst, channels);
    else
      copy_strided(dst, row + at * a.source_stride, p.src_c, channels);
  }
}

// The pixels of a segment whose window row lies inside the image, from the left: one run of `length` elements
// each, copied as whole vectors into rows that have a vector of slack. Pixels at the left edge are done the
// slow way on the way. Returns how many pixels were done.
template <class S, class C>
std::int64_t pack_joined_pixels(const Axis& a, const Segment& g, const S* row, const S* end,
                                std::int64_t tap0, std::int64_t length, std::int64_t channels, C* out,
                                std::int64_t ldk) {
  constexpr int L = kLanes<C>;
  const std::int64_t taps = length / channels, vectors = ceil_div(length, L);
  std::int64_t i = 0;
  for (; i < g.len; ++i, out += ldk) {
    const std::int64_t first = (g.w + i) * a.step + a.offset + tap0;
    const std::int64_t lo = imin(taps, imax(0, -first));
    if (first + taps > a.source) break;
    const S* from = row + (first + lo) * a.source_stride;
    if (from + vectors * L > end) break;
    for (std::int64_t v = 0; v * L < lo * channels; ++v) store(out + v * L, vec<C>{});
    const std::int64_t rest = length - lo * channels;
    for (std::int64_t v = 0; v * L < rest; ++v) store(out + lo * channels + v * L, load(from + v * L));
  }
  return i;
}

template <class S, class C>
void pack_channel_rows(const Dense& p, std::int64_t group, const Block& b, const Segment* segments,
                       std::int64_t count, C* dst, std::int64_t ldk) {
  const Axis& aw = p.axis[2];
  const S* src = static_cast<const S*>(p.src) + (group * p.red_c + b.c0) * p.src_c;
  const std::int64_t channels = b.c1 - b.c0;
  const bool joined = p.src_c == 1 && aw.offset_step == 1 && aw.source_stride == channels;
  for (std::int64_t t = b.tap0; t < b.tap1;) {
    const Tap tap = tap_at(p, t);
    const std::int64_t w_end = imin(aw.taps, tap.w + (b.tap1 - t));
    for (std::int64_t s = 0; s < count; ++s) {
      const Segment& g = segments[s];
      const std::int64_t start = source_row(p, g, tap);
      const bool inside = start >= 0;
      const S* row = src + start;
      C* out = dst + g.at * ldk + (t - b.tap0) * channels;
      std::int64_t i = 0;
      if (inside && joined) {
        i = pack_joined_pixels(aw, g, row, source_end<S>(p), tap.w, (w_end - tap.w) * channels, channels, out,
                               ldk);
        out += i * ldk;
      }
      for (; i < g.len; ++i, out += ldk) {
        if (inside)
          pack_channel_taps(p, row, g.w + i, tap.w, w_end, channels, joined, out);
        else
          zero(out, (w_end - tap.w) * channels);
      }
    }
    t += w_end - tap.w;
  }
}

// The same as a table of pointers instead of a copy, for source channels at distance 1 in the compute type:
// table[panel][tap][kRows] points to channel c0 of each pixel of a row panel. Padding points to `zeros`, and
// a tap that is padding for the whole panel is null in its first row, so that the tile skips it (a third of a
// dilated window at an edge).
template <class C>
struct PointerTable {
  const C** table;
  const C* zeros;
};

// Pixels of the segments under tap `tap`, number `run` of the block's `runs`.
template <class C>
void point_tap(const Dense& p, const C* src, const PointerTable<C>& out, const Tap& tap,
               const Segment* segments, std::int64_t count, std::int64_t run, std::int64_t runs) {
  const Axis& aw = p.axis[2];
  for (std::int64_t s = 0; s < count; ++s) {
    const Segment& g = segments[s];
    const std::int64_t start = source_row(p, g, tap);
    const bool inside = start >= 0;
    const C* row = src + start;
    std::int64_t in_w = g.w * aw.step + aw.offset + tap.w * aw.offset_step;
    std::int64_t panel = g.at / kRows, m = g.at % kRows;
    for (std::int64_t i = 0; i < g.len; ++i, in_w += aw.step) {
      const C** to = out.table + (panel * runs + run) * kRows + m;
      *to = inside && in_w >= 0 && in_w < aw.source ? row + in_w * aw.source_stride : out.zeros;
      if (++m == kRows) m = 0, ++panel;
    }
  }
}

template <class C>
void point_channel_rows(const Dense& p, std::int64_t group, const Block& b, const Segment* segments,
                        std::int64_t count, const PointerTable<C>& out) {
  const C* src = static_cast<const C*>(p.src) + group * p.red_c + b.c0;
  const std::int64_t runs = b.tap1 - b.tap0;
  for (std::int64_t r = 0; r < runs; ++r)
    point_tap(p, src, out, tap_at(p, b.tap0 + r), segments, count, r, runs);
  const Segment& last = segments[count - 1];
  for (std::int64_t i = 0; i < (last.at + last.len) / kRows * runs; ++i) {  // full panels only
    bool padding = true;
    for (int m = 0; m < kRows; ++m) padding = padding && out.table[i * kRows + m] == out.zeros;
    if (padding) out.table[i * kRows] = nullptr;
  }
}

}  // namespace
}  // namespace convnorm::conv
