// What the kernels for few channels per group read: the image under a band of output rows, packed as
// x[row][w][c] of one group, in the compute type, with the padding of the rows.
//
// Include after conv_igemm_pack_weights.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kBandBytes = 24 << 10;  // of a band's operands, in L1

// The packed image under a band: packed row i and column j are row h0 * step + top + i, column left + j.
struct ImageRows {
  std::int64_t top, left;      // from the first output's position, h0 * step, and from 0
  std::int64_t rows, columns;  // of the longest band
  std::int64_t row;            // elements
};

inline std::int64_t reach_of(const Axis& a) { return (a.taps - 1) * a.offset_step; }

inline ImageRows image_rows(const Dense& d, std::int64_t band) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const std::int64_t high = reach_of(h), wide = reach_of(w);
  ImageRows x{};
  x.top = h.offset + imin(0, high);
  x.left = w.offset + imin(0, wide);
  x.rows = (band - 1) * h.step + imax(high, -high) + 1;
  x.columns = (w.out - 1) * w.step + imax(wide, -wide) + 1;
  x.row = x.columns * d.red_c;
  return x;
}

// As many rows of outputs as fit L1 with the image under them; `other` elements per row come with them.
template <class C>
std::int64_t band_rows(const Dense& d, std::int64_t other) {
  const Axis& h = d.axis[1];
  const std::int64_t row = image_rows(d, 1).row, reach = reach_of(h),
                     room = kBandBytes / std::int64_t(sizeof(C));
  return imin(imax(1, h.out), imax(1, (room - imax(reach, -reach) * row) / (h.step * row + other)));
}

// n pixels of `lanes` channels as to[pixel][lane]. The last vector may spill over the end.
template <class S, class C>
void pack_pixels(const S* from, std::int64_t pixel_step, std::int64_t lane_step, std::int64_t lanes,
                 std::int64_t n, C* to) {
  if (pixel_step == 1 && lane_step != 1) return transpose_lanes(from, lane_step, lanes, n, to, lanes);
  if (lane_step == 1 && lanes == kLanes<C>) {
    for (std::int64_t i = 0; i < n; ++i) store(to + i * lanes, load(from + i * pixel_step));
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) copy_strided(to + i * lanes, from + i * pixel_step, lane_step, lanes);
}

// Of plane in_d, for `rows` rows of outputs from h0 on. Rows outside the image are left as they are.
template <class S, class C>
void pack_image_rows(const Dense& d, const ImageRows& x, std::int64_t group, std::int64_t n,
                     std::int64_t in_d, std::int64_t h0, std::int64_t rows, C* to) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const std::int64_t left = imin(x.columns, imax(0, -x.left));  // columns [left, right) are in the image
  const std::int64_t right = imax(left, imin(x.columns, w.source - x.left));
  const std::int64_t top = h0 * h.step + x.top, reach = reach_of(h);
  const std::int64_t packed = (rows - 1) * h.step + imax(reach, -reach) + 1;
  const S* src = static_cast<const S*>(d.src) + group * d.red_c * d.src_c + n * d.src_n +
                 in_d * d.axis[0].source_stride + (x.left + left) * w.source_stride;
  for (std::int64_t i = imax(0, -top); i < imin(packed, h.source - top); ++i) {
    C* row = to + i * x.row;
    zero(row, left * d.red_c);
    pack_pixels(src + (top + i) * h.source_stride, w.source_stride, d.src_c, d.red_c, right - left,
                row + left * d.red_c);
    zero(row + right * d.red_c, (x.columns - right) * d.red_c);
  }
}

}  // namespace
}  // namespace convnorm::conv
