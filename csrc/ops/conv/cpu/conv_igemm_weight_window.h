// By weight in NHWC with few channels: in place of patches, the pixels under a chunk are copied once, padded,
// and the columns of a window row, all of its taps and channels, are a stretch of that copy.
//
//   P[pixel][(row, tap, c)] = copy + rows[pixel] + start[row] + tap * channels + c
//
// A patch of 5x5x3 holds every pixel 25 times, and packing it took 3 times as long as its sums with 10
// filters. But the columns of a row end in a vector that is not full: 15 take 16, and 21 take 32.
//
// Include after conv_igemm_window.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kWindowChunk = 384;  // pixels per pass: twice as many as of patches fit L2

// Outputs of a chunk lie in so many rows of a plane at most.
inline std::int64_t most_lines(const Dense& d) {
  return imin(d.axis[1].out, ceil_div(kWindowChunk, d.axis[2].out) + 1);
}

// Whether the sums of ends of rows cost less than packing, about half a cycle an element.
template <class C>
bool weight_window_serves(const Dense& d) {
  constexpr std::int64_t L = kLanes<C>;
  const std::int64_t rows = d.axis[0].taps * d.axis[1].taps, row = d.axis[2].taps * d.red_c, r = rows * row;
  if (r == 0 || d.axis[2].out == 0 || !copy_serves(d) || !window_rows_join(d)) return false;
  const std::int64_t bytes = window_shape(d, most_lines(d), d.axis[2].out, d.red_c).channel * sizeof(C);
  return bytes <= kCopyBytes && d.out_c * (rows * ceil_div(row, L) - ceil_div(r, L)) < r;
}

// Elements of the copy, and what a tile may read past them.
template <class C>
std::int64_t weight_window_elements(const Dense& d) {
  return window_shape(d, most_lines(d), d.axis[2].out, d.red_c).channel + kCols<C>;
}

// Copies what lies under the pixels of the segments, of one plane, and notes where each pixel and each window
// row starts.
template <class S, class C>
void copy_weight_window(const Dense& d, const Segment* segments, std::int64_t count, C* to,
                        std::int64_t* pixels, std::int64_t* starts) {
  const Segment& first = segments[0];
  const std::int64_t lines = segments[count - 1].h - first.h + 1;
  const WindowShape s = window_shape(d, lines, d.axis[2].out, d.red_c);
  copy_pixels<S>(d, s, {first.n, first.d, first.h, 0, 0, 0}, to);
  zero(to + s.channel, kCols<C>);
  copied_runs(d, s, d.axis[2].taps, starts);
  const std::int64_t step = d.axis[2].step * d.red_c;
  for (std::int64_t i = 0; i < count; ++i) {
    const Segment& g = segments[i];
    const std::int64_t row = (g.h - first.h) * d.axis[1].step * s.pitch;
    for (std::int64_t x = 0; x < g.len; ++x) pixels[g.at + x] = row + (g.w + x) * step;
  }
}

}  // namespace
}  // namespace convnorm::conv
