// Implicit GEMM, pixels across, without patches: the source rows that a task's windows cover are copied once,
// padded and widened, and row (channel, tap) of the matrix of patches is then a row of that copy, shifted by
// the tap.
//
//   copy[c][d][h][w]     channels of the block, planes under the window, rows and columns that the task needs
//   P[(c, t)][pixel]  =  copy + rows[(c, t)] + h * pitch + w      for the pixel (h, w) of the task
//
// In NHWC the same copy, with pixels of all channels, is read by taps, or with few channels by rows of the
// window: P[pixel][(t, c)] = copy + runs[t] + h * pitch + w * step * channels + c.
//
// NCHW for unit steps along w, and NHWC of few filters, whose results are turned as they are written. Nothing
// is packed per tap, but a row of outputs is a unit of tiles: 14 pixels take 16.
//
// Include after conv_igemm_plan.h.
#pragma once

namespace convnorm::conv {
namespace {

// The source positions that `out` outputs from 0 need along an axis, from `first`; tap t is at place(t).
struct Extent {
  std::int64_t first, size, offset, step;
  std::int64_t place(std::int64_t tap) const { return offset + tap * step - first; }
};
inline Extent extent(const Axis& a, std::int64_t out) {
  const std::int64_t reach = (a.taps - 1) * a.offset_step, first = a.offset + imin(0, reach);
  return {first, (out - 1) * a.step + imax(reach, -reach) + 1, a.offset, a.offset_step};
}

// What a task of `lines` rows of `width` pixels copies of one channel, or of `together` channels per pixel.
struct WindowShape {
  Extent h, w;
  std::int64_t planes, pitch, channel;  // rows are `pitch` apart, channels `channel`
};
inline WindowShape window_shape(const Dense& d, std::int64_t lines, std::int64_t width,
                                std::int64_t together = 1) {
  WindowShape s{extent(d.axis[1], lines), extent(d.axis[2], width), d.axis[0].taps, 0, 0};
  s.pitch = s.w.size * together;
  s.channel = s.planes * s.h.size * s.pitch;
  return s;
}

// Elements of the copy for any block of a task of so many pixels, and what a tile may read past them.
template <class C>
std::int64_t window_elements(const Dense& d, const Plan<C>& plan, std::int64_t pixels) {
  const std::int64_t width = imin(pixels, d.axis[2].out);
  if (plan.copied) return window_shape(d, pixels / width, width, d.red_c).channel;
  return plan.cut.most_channels() * window_shape(d, pixels / width, width).channel + kCols<C>;
}

// Where row (c, t) of a block starts in the copy.
inline void window_rows(const Dense& d, const Block& b, const WindowShape& s, std::int64_t* rows) {
  for (std::int64_t c = b.c0; c < b.c1; ++c)
    for (std::int64_t i = 0; i < d.axis[0].taps; ++i)
      for (std::int64_t j = 0; j < d.axis[1].taps; ++j)
        for (std::int64_t k = 0; k < d.axis[2].taps; ++k)
          *rows++ = (c - b.c0) * s.channel + (i * s.h.size + s.h.place(j)) * s.pitch + s.w.place(k);
}

// n positions from `first` of a source row, `step` apart, zero outside [0, size).
template <class S, class C>
void copy_padded(C* to, const S* row, std::int64_t first, std::int64_t n, std::int64_t size,
                 std::int64_t step) {
  const std::int64_t lo = imin(n, imax(0, -first)), hi = imax(lo, imin(n, size - first));
  zero(to, lo);
  copy_strided(to + lo, row + (first + lo) * step, step, hi - lo);
  zero(to + hi, n - hi);
}

// The rows under the windows of outputs from (n, d, h, w) of an image, of pixels of `together` channels.
template <class S, class C>
void copy_image(const Dense& p, const S* image, const WindowShape& s, const Segment& at,
                std::int64_t together, C* to) {
  const Axis &ad = p.axis[0], &ah = p.axis[1], &aw = p.axis[2];
  for (std::int64_t i = 0; i < s.planes; ++i) {
    const std::int64_t in_d = at.d * ad.step + ad.offset + i * ad.offset_step;
    for (std::int64_t y = 0; y < s.h.size; ++y, to += s.pitch) {
      const std::int64_t in_h = at.h * ah.step + s.h.first + y;
      if (in_d < 0 || in_d >= ad.source || in_h < 0 || in_h >= ah.source)
        zero(to, s.pitch);
      else
        copy_padded(to, image + in_d * ad.source_stride + in_h * ah.source_stride,
                    (at.w * aw.step + s.w.first) * together, s.pitch, aw.source * together,
                    together == 1 ? aw.source_stride : 1);
    }
  }
}

// Rows of pixels: the channels of a block, one by one.
template <class S, class C>
void copy_window(const Dense& p, std::int64_t group, const Block& b, const WindowShape& s, const Segment& at,
                 C* to) {
  const S* image = static_cast<const S*>(p.src) + group * p.red_c * p.src_c + at.n * p.src_n;
  for (std::int64_t c = b.c0; c < b.c1; ++c, to += s.channel)
    copy_image(p, image + c * p.src_c, s, at, 1, to);
  zero(to, kCols<C>);  // what the last tile reads beyond its pixels
}

// Pixels of all channels,
template <class S, class C>
void copy_pixels(const Dense& p, const WindowShape& s, const Segment& at, C* to) {
  copy_image(p, static_cast<const S*>(p.src) + at.n * p.src_n, s, at, p.red_c, to);
}

// and where the runs of a window start: its rows, or its taps.
inline void copied_runs(const Dense& d, const WindowShape& s, std::int64_t run_taps, std::int64_t* runs) {
  for (std::int64_t i = 0; i < d.axis[0].taps; ++i)
    for (std::int64_t j = 0; j < d.axis[1].taps; ++j)
      for (std::int64_t k = 0; k < d.axis[2].taps; k += run_taps)
        *runs++ = (i * s.h.size + s.h.place(j)) * s.pitch + s.w.place(k) * d.red_c;
}

}  // namespace
}  // namespace convnorm::conv
