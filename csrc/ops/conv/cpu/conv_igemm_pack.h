// Packing for the implicit GEMM: patches of one block of output pixels, and weights.
//
// The matrix of patches (im2col) exists only for one block at a time, in one of two forms, so that the copies run
// along memory in both layouts:
//   rows of pixels    P[k][pixel]   source with unit distance along w (NCHW)     k = (channel, tap)
//   rows of channels  P[pixel][k]   source with unit distance along c (NHWC)     k = (tap, channel)
// Stride, dilation, padding, groups and 16-bit storage are dealt with here and nowhere else.
//
// Include after cpu/microkernel.h.
#pragma once

namespace convnorm::conv {
namespace {

// A piece of the sum: all pairs of taps [tap0, tap1) and channels [c0, c1). `start` is its first row in the whole sum.
struct Block {
  std::int64_t tap0, tap1, c0, c1, start;
  std::int64_t depth() const { return (tap1 - tap0) * (c1 - c0); }
};

// How the sum over (tap, channel) is cut into blocks of at most about kMaxDepth, so that the panels of a and b that a
// tile reads stay in L1 (32 KB: 320 * (16 + 6) * 4 bytes).
inline constexpr std::int64_t kMaxDepth = 320;

struct Cut {
  std::int64_t taps, channels, tap_blocks, channel_blocks;
  std::int64_t count() const { return tap_blocks * channel_blocks; }
  Block block(std::int64_t i) const {
    const std::int64_t t = i / channel_blocks, c = i % channel_blocks;
    Block b{t * taps / tap_blocks, (t + 1) * taps / tap_blocks, c * channels / channel_blocks,
            (c + 1) * channels / channel_blocks, 0};
    b.start = b.tap0 * channels + (b.tap1 - b.tap0) * b.c0;
    return b;
  }
};

inline std::int64_t tap_count(const Dense& d) { return d.axis[0].taps * d.axis[1].taps * d.axis[2].taps; }

// Rows of channels want few, long runs (all channels of some taps); rows of pixels want all taps of some channels, whose
// source rows stay in L1.
inline Cut make_cut(const Dense& d, bool channel_rows) {
  Cut cut{tap_count(d), d.red_c, 1, 1};
  const std::int64_t inner = channel_rows ? cut.channels : cut.taps;
  const std::int64_t outer = channel_rows ? cut.taps : cut.channels;
  std::int64_t inner_blocks = imax(1, ceil_div(inner, kMaxDepth));
  const std::int64_t inner_len = imax(1, ceil_div(inner, inner_blocks));
  std::int64_t outer_blocks = imax(1, ceil_div(outer, imax(1, kMaxDepth / inner_len)));
  cut.tap_blocks = channel_rows ? outer_blocks : inner_blocks;
  cut.channel_blocks = channel_rows ? inner_blocks : outer_blocks;
  return cut;
}

// A tap's place in the window.
struct Tap {
  std::int64_t d, h, w;
};
inline Tap tap_at(const Dense& d, std::int64_t t) {
  const std::int64_t w = d.axis[2].taps, h = d.axis[1].taps;
  return {t / (w * h), t / w % h, t % w};
}

// Outputs [lo, hi) of an axis whose source position at this tap is inside the source.
struct Span {
  std::int64_t lo, hi;
};
inline Span valid_outputs(const Axis& a, std::int64_t tap) {
  const std::int64_t first = a.offset + tap * a.offset_step;  // source position of output 0
  const std::int64_t lo = first >= 0 ? 0 : ceil_div(-first, a.step);
  const std::int64_t hi = first >= a.source ? 0 : (a.source - 1 - first) / a.step + 1;
  return {imin(lo, a.out), imax(imin(lo, a.out), imin(hi, a.out))};
}

// A stretch of consecutive output pixels in one output row: len pixels from (n, d, h, w), at place `at` in the block.
struct Segment {
  std::int64_t n, d, h, w, len, at;
};

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

// Offset of each pixel of the segments in the destination, in elements.
inline void destination_offsets(const Dense& p, const Segment* segments, std::int64_t count, std::int64_t* out) {
  for (std::int64_t s = 0; s < count; ++s) {
    const Segment& g = segments[s];
    const std::int64_t base =
        g.n * p.dst_n + g.d * p.axis[0].out_stride + g.h * p.axis[1].out_stride + g.w * p.axis[2].out_stride;
    for (std::int64_t i = 0; i < g.len; ++i) out[g.at + i] = base + i * p.axis[2].out_stride;
  }
}

// --- copies ---------------------------------------------------------------------------------------------------

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
  if (i < n) store(dst + n - L, load(src + n - L));  // overlaps what was written: cheaper than single elements
}

// Every other element: two loads, the even lanes of both.
template <class C>
inline vec<C> even_lanes(vec<C> a, vec<C> b) {
  ivec<C> pick;
  for (int i = 0; i < kLanes<C>; ++i) pick[i] = 2 * i;
  return __builtin_shuffle(a, b, pick);
}

template <class S, class C>
inline void copy_strided(C* dst, const S* src, std::int64_t stride, std::int64_t n) {
  constexpr int L = kLanes<C>;
  if (stride == 1) return copy_run(dst, src, n);
  std::int64_t i = 0;
  if (stride == 2)  // the last load ends at element 2*i + 2*L - 1, which must exist: 2*(n-1) is the last sure one
    for (; 2 * (i + L) <= 2 * n - 1; i += L)
      store(dst + i, even_lanes<C>(load(src + 2 * i), load(src + 2 * i + L)));
  for (; i < n; ++i) dst[i] = load1(src + i * stride);
}

// --- rows of pixels: P[k][pixel], row length ldp ------------------------------------------------------------------

template <class S, class C>
void pack_pixel_row(const Dense& p, const S* channel, Tap tap, const Segment* segments, std::int64_t count, C* dst) {
  const Axis &ad = p.axis[0], &ah = p.axis[1], &aw = p.axis[2];
  const Span w_span = valid_outputs(aw, tap.w);
  const std::int64_t first_w = aw.offset + tap.w * aw.offset_step;
  const std::int64_t stride = aw.step * aw.source_stride;
  for (std::int64_t s = 0; s < count; ++s) {
    const Segment& g = segments[s];
    const std::int64_t in_d = g.d * ad.step + ad.offset + tap.d * ad.offset_step;
    const std::int64_t in_h = g.h * ah.step + ah.offset + tap.h * ah.offset_step;
    const std::int64_t lo = imax(g.w, w_span.lo), hi = imin(g.w + g.len, w_span.hi);
    C* out = dst + g.at;
    if (in_d < 0 || in_d >= ad.source || in_h < 0 || in_h >= ah.source || lo >= hi) {
      zero(out, g.len);
      continue;
    }
    const S* row = channel + g.n * p.src_n + in_d * ad.source_stride + in_h * ah.source_stride;
    if (lo > g.w) zero(out, lo - g.w);
    copy_strided(out + (lo - g.w), row + (first_w + lo * aw.step) * aw.source_stride, stride, hi - lo);
    if (hi < g.w + g.len) zero(out + (hi - g.w), g.w + g.len - hi);
  }
}

template <class S, class C>
void pack_pixel_rows(const Dense& p, std::int64_t group, const Block& b, const Segment* segments, std::int64_t count,
                     std::int64_t pixels, C* dst, std::int64_t ldp) {
  const S* src = static_cast<const S*>(p.src) + group * p.red_c * p.src_c;
  for (std::int64_t c = b.c0; c < b.c1; ++c)
    for (std::int64_t t = b.tap0; t < b.tap1; ++t, dst += ldp) {
      pack_pixel_row(p, src + c * p.src_c, tap_at(p, t), segments, count, dst);
      if (pixels < ldp) zero(dst + pixels, imin(ldp - pixels, kCols<C>));
    }
}

// --- rows of channels: P[pixel][k], row length ldk ----------------------------------------------------------------

// Taps tap0..tap1 of one window row for one pixel. Where neighbouring taps and channels follow each other in memory
// (dilation 1, one group), all of them are one run.
template <class S, class C>
inline void pack_channel_taps(const Dense& p, const S* row, std::int64_t w, std::int64_t tap0, std::int64_t tap1,
                              std::int64_t channels, bool joined, C* dst) {
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

template <class S, class C>
void pack_channel_rows(const Dense& p, std::int64_t group, const Block& b, const Segment* segments, std::int64_t count,
                       C* dst, std::int64_t ldk) {
  const Axis &ad = p.axis[0], &ah = p.axis[1], &aw = p.axis[2];
  const S* src = static_cast<const S*>(p.src) + (group * p.red_c + b.c0) * p.src_c;
  const std::int64_t channels = b.c1 - b.c0;
  const bool joined = p.src_c == 1 && aw.offset_step == 1 && aw.source_stride == channels;
  for (std::int64_t t = b.tap0; t < b.tap1;) {
    const Tap tap = tap_at(p, t);
    const std::int64_t w_end = imin(aw.taps, tap.w + (b.tap1 - t));
    for (std::int64_t s = 0; s < count; ++s) {
      const Segment& g = segments[s];
      const std::int64_t in_d = g.d * ad.step + ad.offset + tap.d * ad.offset_step;
      const std::int64_t in_h = g.h * ah.step + ah.offset + tap.h * ah.offset_step;
      const bool inside = in_d >= 0 && in_d < ad.source && in_h >= 0 && in_h < ah.source;
      const S* row = src + g.n * p.src_n + in_d * ad.source_stride + in_h * ah.source_stride;
      C* out = dst + g.at * ldk + (t - b.tap0) * channels;
      for (std::int64_t i = 0; i < g.len; ++i, out += ldk) {
        if (inside)
          pack_channel_taps(p, row, g.w + i, tap.w, w_end, channels, joined, out);
        else
          zero(out, (w_end - tap.w) * channels);
      }
    }
    t += w_end - tap.w;
  }
}

// --- weights ----------------------------------------------------------------------------------------------------

// `lanes` output channels from `first` of one block, transposed to panel[k][width] with zeros in lanes >= lanes.
template <class S, class C>
void pack_weight_panel(const Dense& p, std::int64_t group, const Block& b, bool channel_rows, std::int64_t first,
                       std::int64_t lanes, std::int64_t width, C* dst) {
  const S* base = static_cast<const S*>(p.weight) + group * p.weight_group + first * p.weight_out;
  const std::int64_t channels = b.c1 - b.c0, taps = b.tap1 - b.tap0;
  const auto put = [&](const S* src, C* out) {
    if (p.weight_out == 1) {
      copy_run(out, src, lanes);
    } else {
      for (std::int64_t o = 0; o < lanes; ++o) out[o] = load1(src + o * p.weight_out);
    }
    for (std::int64_t o = lanes; o < width; ++o) out[o] = C(0);
  };
  for (std::int64_t t = 0; t < taps; ++t) {
    const Tap tap = tap_at(p, b.tap0 + t);
    const S* at = base + tap.d * p.axis[0].weight_step + tap.h * p.axis[1].weight_step + tap.w * p.axis[2].weight_step;
    for (std::int64_t c = 0; c < channels; ++c)
      put(at + (b.c0 + c) * p.weight_red, dst + (channel_rows ? t * channels + c : c * taps + t) * width);
  }
}

}  // namespace
}  // namespace convnorm::conv
