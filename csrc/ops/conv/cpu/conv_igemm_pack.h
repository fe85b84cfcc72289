// Packing for the implicit GEMM: how the sum is cut, and the patches of one block of output pixels.
//
// The matrix of patches (im2col) exists only for one block at a time, in one of two forms, so that the copies
// run along memory in both layouts:
//   rows of pixels    P[k][pixel]   source with unit distance along w (NCHW)     k = (channel, tap)
//   rows of channels  P[pixel][k]   source with unit distance along c (NHWC)     k = (tap, channel)
// Stride, dilation, padding, groups and 16-bit storage are dealt with here and nowhere else.
//
// Include after conv_taps.h and cpu/microkernel.h.
#pragma once

namespace convnorm::conv {
namespace {

// A piece of the sum: all pairs of taps [tap0, tap1) and channels [c0, c1). `start` is its first row in the
// whole sum.
struct Block {
  std::int64_t tap0, tap1, c0, c1, start;
  std::int64_t depth() const { return (tap1 - tap0) * (c1 - c0); }
};

// How the sum over (tap, channel) is cut into blocks of at most about kMaxDepth, so that the panels of a and
// b that a tile reads stay in L1 (32 KB: 320 * (16 + 6) * 4 bytes).
inline constexpr std::int64_t kMaxDepth = 320;

struct Cut {
  std::int64_t taps, channels, row;  // taps are cut in multiples of `row`
  std::int64_t tap_blocks, channel_blocks;
  std::int64_t count() const { return tap_blocks * channel_blocks; }
  std::int64_t first_tap(std::int64_t i) const { return i * (taps / row) / tap_blocks * row; }
  std::int64_t most_taps() const { return ceil_div(taps / row, tap_blocks) * row; }
  std::int64_t most_channels() const { return ceil_div(channels, channel_blocks); }
  std::int64_t depth() const { return most_taps() * most_channels(); }  // of the longest block
  Block block(std::int64_t i) const {
    const std::int64_t t = i / channel_blocks, c = i % channel_blocks;
    Block b{first_tap(t), first_tap(t + 1), c * channels / channel_blocks,
            (c + 1) * channels / channel_blocks, 0};
    b.start = b.tap0 * channels + (b.tap1 - b.tap0) * b.c0;
    return b;
  }
};

// Rows of channels want few, long runs (all channels of some taps); rows of pixels want all taps of some
// channels, whose source rows stay in L1, and with a single tap few channels, so that as many pixels of each
// can be copied, or asked for, in one go. Wider tiles are written sooner: that many more channels.
inline constexpr std::int64_t kFewFilters = 128;  // up to here rows of pixels may be read in place
inline std::int64_t most_depth(const Dense& d, bool channel_rows) {
  if (channel_rows || tap_count(d) > 1) return kMaxDepth;
  return CONVNORM_VECTOR_BYTES == 64 && d.out_c > kFewFilters ? 128 : 64;
}

inline Cut make_cut(const Dense& d, bool channel_rows, std::int64_t most, std::int64_t row = 1) {
  Cut cut{tap_count(d), d.red_c, row, 1, 1};
  const std::int64_t rows = cut.taps / row;
  const std::int64_t inner = channel_rows ? cut.channels * row : cut.taps;
  const std::int64_t outer = channel_rows ? rows : cut.channels;
  const std::int64_t inner_blocks = imax(1, ceil_div(inner, most));
  const std::int64_t inner_len = imax(1, ceil_div(inner, inner_blocks));
  const std::int64_t outer_blocks = imax(1, ceil_div(outer, imax(1, most / inner_len)));
  cut.tap_blocks = channel_rows ? outer_blocks : inner_blocks;
  cut.channel_blocks = channel_rows ? inner_blocks : outer_blocks;
  return cut;
}

// Elements that a vector store may write past the end of what is packed.
template <class C>
inline constexpr std::int64_t kSlack = kLanes<C>;

// A stretch of consecutive output pixels in one output row: len pixels from (n, d, h, w), at place `at` in
// the block.
struct Segment {
  std::int64_t n, d, h, w, len, at;
};

// Where the source row of a segment under a tap starts, in elements; -1 where the window is in the padding.
inline std::int64_t source_row(const Dense& p, const Segment& g, const Tap& tap) {
  const Axis &d = p.axis[0], &h = p.axis[1];
  const std::int64_t in_d = g.d * d.step + d.offset + tap.d * d.offset_step;
  const std::int64_t in_h = g.h * h.step + h.offset + tap.h * h.offset_step;
  if (in_d < 0 || in_d >= d.source || in_h < 0 || in_h >= h.source) return -1;
  return g.n * p.src_n + in_d * d.source_stride + in_h * h.source_stride;
}

// Pixels [begin, end) of the flattened (n, d, h, w) order as segments; returns how many.
inline std::int64_t make_segments(const Dense& p, std::int64_t begin, std::int64_t end, Segment* out) {
  const std::int64_t W = p.axis[2].out, H = p.axis[1].out, D = p.axis[0].out;
  std::int64_t count = 0;
  for (std::int64_t at = begin; at < end;) {
    const std::int64_t row = at / W, w = at % W;
    const std::int64_t len = imin(W - w, end - at);
    out[count++] = {row / (H * D), row / H % D, row % H, w, len, at - begin};
    at += len;
  }
  return count;
}

// The same pixels in another order: those whose windows cross the left edge, those inside, those that cross
// the right edge. A tile of six neighbours in this order has the same taps in the padding, and skips them.
inline std::int64_t order_by_edges(const Axis& a, const Segment* segments, std::int64_t count, Segment* out) {
  const std::int64_t reach = (a.taps - 1) * a.offset_step;
  const std::int64_t low = -(a.offset + imin(0, reach)), high = a.source - a.offset - imax(0, reach);
  const std::int64_t inside = imin(a.out, imax(0, ceil_div(imax(0, low), a.step)));
  const std::int64_t right = imax(inside, imin(a.out, ceil_div(imax(0, high), a.step)));
  const std::int64_t edge[4] = {0, inside, right, a.out};
  std::int64_t n = 0, at = 0;
  for (int i = 0; i < 3; ++i)
    for (std::int64_t s = 0; s < count; ++s) {
      Segment g = segments[s];
      const std::int64_t end = imin(g.w + g.len, edge[i + 1]);
      g.w = imax(g.w, edge[i]);
      if (g.w >= end) continue;
      g.len = end - g.w;
      g.at = at;
      at += g.len;
      out[n++] = g;
    }
  return n;
}

// Offset of each pixel of the segments in the destination, in elements.
inline void destination_offsets(const Dense& p, const Segment* segments, std::int64_t count,
                                std::int64_t* out) {
  for (std::int64_t s = 0; s < count; ++s) {
    const Segment& g = segments[s];
    const std::int64_t base =
        g.n * p.dst_n + g.d * p.axis[0].out_stride + g.h * p.axis[1].out_stride + g.w * p.axis[2].out_stride;
    for (std::int64_t i = 0; i < g.len; ++i) out[g.at + i] = base + i * p.axis[2].out_stride;
  }
}

// --- copies
// ---------------------------------------------------------------------------------------------------

template <class C>
inline void zero(C* dst, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes<C> <= n; i += kLanes<C>) store(dst + i, vec<C>{});
  for (; i < n; ++i) dst[i] = C(0);
}

// n elements at distance 1, widened to C.
template <class S, class C>
inline void copy_run(C* dst, const S* src, std::int64_t n) {
  constexpr int L = kLanes<C>;
  if (n < L) {
    for (std::int64_t i = 0; i < n; ++i) dst[i] = load1(src + i);
    return;
  }
  std::int64_t i = 0;
  for (; i + L <= n; i += L) store(dst + i, load(src + i));
  if (i < n)
    store(dst + n - L, load(src + n - L));  // overlaps what was written: cheaper than single elements
}

template <class S, class C>
inline void copy_strided(C* dst, const S* src, std::int64_t stride, std::int64_t n) {
  constexpr int L = kLanes<C>;
  if (stride == 1) return copy_run(dst, src, n);
  std::int64_t i = 0;
  if (stride ==
      2)  // the last load ends at element 2*i + 2*L - 1, which must exist: 2*(n-1) is the last sure one
    for (; 2 * (i + L) <= 2 * n - 1; i += L)
      store(dst + i, even_lanes(load(src + 2 * i), load(src + 2 * i + L), kEachLane<C>));
  for (; i < n; ++i) dst[i] = load1(src + i * stride);
}

// --- rows of pixels: P[k][pixel], row length ldp
// ------------------------------------------------------------------
//
// Packed a panel of kCols pixels at a time (which stays in L1), or, where the sum is short, all pixels of a
// task. What is copied where is the same for every channel, so it is worked out once per panel, as a list of
// runs, and carried out per channel. Stores are whole vectors that may run past the end of their run: what
// they spill into is written later (rows in order, panels from left to right, slack after the last). Only
// loads must not pass the end of the source.

struct Run {
  std::int64_t src;  // from the start of the channel
  std::int32_t dst;  // from the start of the channel's rows
  std::int32_t n;    // elements; negative: so many zeros
};

// One past the last element of the source.
template <class S>
const S* source_end(const Dense& p) {
  std::int64_t last = (p.n - 1) * p.src_n + (p.groups * p.red_c - 1) * p.src_c;
  for (const Axis& a : p.axis) last += (a.source - 1) * a.source_stride;
  return static_cast<const S*>(p.src) + last + 1;
}

// The same of the destination.
template <class S>
const S* destination_end(const Dense& p) {
  std::int64_t last = (p.n - 1) * p.dst_n + (p.groups * p.out_c - 1) * p.dst_c;
  for (const Axis& a : p.axis) last += (a.out - 1) * a.out_stride;
  return static_cast<const S*>(p.dst) + last + 1;
}

// Runs of one segment under one tap: zeros, source, zeros, as the window enters and leaves the image. `row`
// is the source row's offset, or negative where the whole row is outside.
inline Run* add_runs(const Axis& w, const Segment& g, std::int64_t row, std::int64_t first, std::int32_t dst,
                     Run* out) {
  std::int64_t lo = 0, hi = g.len;
  if (row < 0 || first >= w.source) {
    *out++ = {0, dst, static_cast<std::int32_t>(-g.len)};
    return out;
  }
  if (first < 0 || first + (g.len - 1) * w.step >= w.source) {
    const bool unit = w.step == 1;  // spares the divisions
    lo = first >= 0 ? 0 : imin(g.len, unit ? -first : ceil_div(-first, w.step));
    hi = imax(lo, imin(g.len, unit ? w.source - first : (w.source - 1 - first) / w.step + 1));
    if (lo > 0) *out++ = {0, dst, static_cast<std::int32_t>(-lo)};
  }
  if (hi > lo)
    *out++ = {row + (first + lo * w.step) * w.source_stride, static_cast<std::int32_t>(dst + lo),
              static_cast<std::int32_t>(hi - lo)};
  if (hi < g.len) *out++ = {0, static_cast<std::int32_t>(dst + hi), static_cast<std::int32_t>(hi - g.len)};
  return out;
}

// The list for at most kMaxSegments segments and all taps of a block. At most 3 runs per segment and tap.
inline constexpr std::int64_t kMaxSegments = 32;

inline std::int64_t list_runs(const Dense& p, const Block& b, const Segment* segments, std::int64_t count,
                              std::int64_t ldp, Run* runs) {
  const Axis &ah = p.axis[1], &aw = p.axis[2];
  Run* out = runs;
  Tap tap = tap_at(p, b.tap0);
  std::int64_t row[kMaxSegments], first[kMaxSegments];
  bool inner[kMaxSegments];  // under every tap of this window row the segment lies inside the image
  const std::int64_t reach = (aw.taps - 1) * aw.offset_step;
  std::int32_t dst = 0;
  for (std::int64_t t = b.tap0; t < b.tap1; ++t, dst += static_cast<std::int32_t>(ldp)) {
    if (t == b.tap0 || tap.w == 0)  // a new row of the window
      for (std::int64_t s = 0; s < count; ++s) {
        const Segment& g = segments[s];
        row[s] = source_row(p, g, tap);
        first[s] = g.w * aw.step + aw.offset + tap.w * aw.offset_step;
        const std::int64_t low = g.w * aw.step + aw.offset + imin(0, reach);
        const std::int64_t high = (g.w + g.len - 1) * aw.step + aw.offset + imax(0, reach);
        inner[s] = row[s] >= 0 && low >= 0 && high < aw.source;
      }
    for (std::int64_t s = 0; s < count; ++s) {
      const std::int32_t at = dst + static_cast<std::int32_t>(segments[s].at);
      if (inner[s])
        *out++ = {row[s] + first[s] * aw.source_stride, at, static_cast<std::int32_t>(segments[s].len)};
      else
        out = add_runs(aw, segments[s], row[s], first[s], at, out);
      first[s] += aw.offset_step;
    }
    if (++tap.w == aw.taps) {
      tap.w = 0;
      if (++tap.h == ah.taps) tap.h = 0, ++tap.d;
    }
  }
  return out - runs;
}

template <class S, class C>
inline void copy_run_loosely(C* dst, const S* src, std::int64_t stride, std::int64_t n, const S* end) {
  constexpr int L = kLanes<C>;
  if (stride == 1 && src + ceil_div(n, L) * L <= end) {
    for (std::int64_t i = 0; i < n; i += L) store(dst + i, load(src + i));
  } else if (stride == 2 && src + 2 * ceil_div(n, L) * L <= end) {
    for (std::int64_t i = 0; i < n; i += L)
      store(dst + i, even_lanes(load(src + 2 * i), load(src + 2 * i + L), kEachLane<C>));
  } else {
    for (std::int64_t i = 0; i < n; ++i) dst[i] = load1(src + i * stride);
  }
}

// Carries the list out for channels [c0, c1).
template <class S, class C>
void pack_pixel_panel(const Dense& p, std::int64_t group, const Block& b, const Run* runs, std::int64_t count,
                      C* dst, std::int64_t ldp) {
  constexpr int L = kLanes<C>;
  const S* channel = static_cast<const S*>(p.src) + (group * p.red_c + b.c0) * p.src_c;
  const S* end = source_end<S>(p);
  const std::int64_t stride = p.axis[2].step * p.axis[2].source_stride, taps = b.tap1 - b.tap0;
  for (std::int64_t c = b.c0; c < b.c1; ++c, channel += p.src_c, dst += taps * ldp)
    for (std::int64_t i = 0; i < count; ++i) {
      const Run& r = runs[i];
      if (r.n < 0)
        for (std::int64_t k = 0; k < -r.n; k += L) store(dst + r.dst + k, vec<C>{});
      else
        copy_run_loosely(dst + r.dst, channel + r.src, stride, r.n, end);
    }
}

// Asks for the lines of a later panel while the current one is computed: worth it where each element is read
// once.
template <class S>
void prefetch_panel(const Dense& p, std::int64_t group, const Block& b, const Segment* segments,
                    std::int64_t count) {
  const S* channel = static_cast<const S*>(p.src) + (group * p.red_c + b.c0) * p.src_c;
  for (std::int64_t s = 0; s < count; ++s) {
    const Segment& g = segments[s];
    const S* at = channel + g.n * p.src_n + g.d * p.axis[0].step * p.axis[0].source_stride +
                  g.h * p.axis[1].step * p.axis[1].source_stride +
                  g.w * p.axis[2].step * p.axis[2].source_stride;
    for (std::int64_t c = b.c0; c < b.c1; ++c, at += p.src_c) __builtin_prefetch(at);
  }
}

}  // namespace
}  // namespace convnorm::conv
