// From the image to transformed tiles, in any layout, a vector of channels at a time; back is in
// conv_winograd_outputs.h. By weight, the gradient of the outputs is read by tiles as the inputs are.
//
//   channels at distance 1 (NHWC):  tiles are read and written where they lie
//   otherwise (NCHW):               by a strip of a few image rows whose pixels are vectors of channels:
//   squares of channels
//                                   x pixels are turned in registers on the way in and out
//
// Tiles that reach over the edge of the image see zeros there (padding), and write only what is inside.
//
// Include after conv_winograd_slices.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr int kL = kLanes<float>;
inline constexpr int kLine = 16;  // floats of a cache line, and of the widest vector

// The tiles of all output planes, of tile x tile outputs, in order (n, plane, row, column). A dilated window
// sees every gap-th row and column: it works on gap_h x gap_w interleaved images, and so do the tiles. gap_w
// neighbours of a row of tiles are a group, one tile of each interleaved image, that share a stretch of
// pixels.
struct Grid {
  std::int64_t tile;
  std::int64_t planes, rows, columns, tiles;
  std::int64_t gap_h, gap_w;
};

// Tiles are cut in multiples of this: groups stay together.
inline std::int64_t cut_unit(const Grid& g) { return g.gap_w == 1 ? 1 : kBlockTiles; }

// Where tile i begins along an axis.
inline std::int64_t corner(const Grid& g, std::int64_t i, std::int64_t gap) {
  return gap == 1 ? i * g.tile : i / gap * gap * g.tile + i % gap;
}

inline Grid make_grid(const Dense& d) {
  Grid g{};
  g.tile = winograd_tile(phases_along(d.axis[1]).taps);
  const auto along = [&](const Axis& a, std::int64_t& gap) {
    gap = imax(a.offset_step, -a.offset_step);
    return gap * ceil_div(ceil_div(a.out, gap), g.tile);
  };
  g.planes = d.axis[0].out;
  g.rows = along(d.axis[1], g.gap_h);
  g.columns = along(d.axis[2], g.gap_w);
  g.tiles = d.n * g.planes * g.rows * g.columns;
  return g;
}

// What tiles are read from: planes of pixels, zero outside.
struct Image {
  const float* data;
  std::int64_t n_stride, channel_stride, channels;
  std::int64_t height, width, row_stride, column_stride;
  std::int64_t first_h, first_w;  // the corner of tile (0, 0)
};

// The source under a slice: every step-th row and column. Taps run either way.
inline Image source_image(const Dense& d, const Slice& slice) {
  struct Along {
    std::int64_t first, rest;  // pixels of the phase, and of the source before its first
  };
  const auto along = [](const Axis& a, std::int64_t phase) {
    const std::int64_t at = a.offset + imin(0, (a.taps - 1) * a.offset_step) + phase;
    const std::int64_t rest = (at % a.step + a.step) % a.step;
    return Along{(at - rest) / a.step, rest};
  };
  const Axis &h = d.axis[1], &w = d.axis[2];
  const Along rows = along(h, slice.phase_h), columns = along(w, slice.phase_w);
  return {static_cast<const float*>(d.src) + rows.rest * h.source_stride + columns.rest * w.source_stride,
          d.src_n,
          d.src_c,
          d.red_c,
          ceil_div(h.source - rows.rest, h.step),
          ceil_div(w.source - columns.rest, w.step),
          h.step * h.source_stride,
          w.step * w.source_stride,
          rows.first,
          columns.first};
}

inline Image gradient_image(const Dense& d) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  return {static_cast<const float*>(d.dst),
          d.dst_n,
          d.dst_c,
          d.out_c,
          h.out,
          w.out,
          h.out_stride,
          w.out_stride,
          0,
          0};
}

// Neighbouring tiles of one row of tiles, whole groups; `at` counts from the start of the block they belong
// to.
struct TileRun {
  std::int64_t n, plane, row, column, length, at;
};

template <class Body>
inline void each_run(const Grid& g, std::int64_t begin, std::int64_t end, Body&& body) {
  for (std::int64_t t = begin; t < end;) {
    const std::int64_t line = t / g.columns, column = t % g.columns, plane = line / g.rows;
    const std::int64_t length = imin(g.columns - column, end - t);
    body(TileRun{plane / g.planes, plane % g.planes, line % g.rows, column, length, t - begin});
    t += length;
  }
}

// Elements of a strip over `tiles` tiles: six rows of a line of input channels, those of a tile of a panel of
// output channels and so many phases.
inline std::int64_t strip_elements(const Grid& g, std::int64_t tiles, std::int64_t phases) {
  return imax(kReach * kLine, g.tile * kColVecs * kL * phases) *
         (g.tile * tiles + (kReach - g.tile) * g.gap_w);
}

// Pixels of a row under `tiles` neighbouring tiles of `side` pixels.
inline std::int64_t run_width(const Grid& g, std::int64_t tiles, std::int64_t side) {
  return g.tile * tiles + (side - g.tile) * g.gap_w;
}

// Elements 0, 2, 4, ... of src; none past the last of them is touched.
template <int... i>
inline F load_every_second(const float* src, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(load(src), load(src + kL - 1), (2 * i < kL ? 2 * i : 2 * i + 1)...);
}

// n pixels of `lanes` channels from src[channel * stride + x * step] to dst[x][lane]; missing channels are
// zero.
inline void turn_in(const float* src, std::int64_t stride, std::int64_t step, std::int64_t lanes,
                    std::int64_t n, float* dst) {
  if (step <= 2 && n >= kL) {
    for (std::int64_t x = 0; x < n; x += kL) {
      const std::int64_t at = imin(x, n - kL);  // the last square overlaps the one before
      F square[kL];
      for (int c = 0; c < kL; ++c) {
        const float* from = src + c * stride + at * step;
        square[c] = c >= lanes ? F{} : step == 1 ? load(from) : load_every_second(from, kEachLane<float>);
      }
      transpose<float>(square);
      for (int i = 0; i < kL; ++i) store(dst + (at + i) * kL, square[i]);
    }
    return;
  }
  for (std::int64_t x = 0; x < n; ++x)
    for (std::int64_t c = 0; c < kL; ++c) dst[x * kL + c] = c < lanes ? src[c * stride + x * step] : 0;
}

// Where tile (row, column) begins in the image.
inline std::int64_t tile_row(const Image& s, const Grid& g, std::int64_t row) {
  return corner(g, row, g.gap_h) + s.first_h;
}

// The kSide rows under a run, from channel c: strip[row][pixel][lane].
template <int kSide>
inline void fill_strip(const Image& s, const Grid& g, const TileRun& run, const float* plane, std::int64_t c,
                       float* strip) {
  const float* src = plane + c * s.channel_stride;
  const std::int64_t width = run_width(g, run.length, kSide), y0 = tile_row(s, g, run.row),
                     x0 = g.tile * run.column + s.first_w;
  const std::int64_t lo = imin(width, imax(0, -x0)), hi = imax(lo, imin(width, s.width - x0));
  for (int i = 0; i < kSide; ++i, strip += width * kL) {
    const std::int64_t y = y0 + i * g.gap_h;
    if (y < 0 || y >= s.height) {
      zero(strip, width * kL);
      continue;
    }
    zero(strip, lo * kL);
    turn_in(src + y * s.row_stride + (x0 + lo) * s.column_stride, s.channel_stride, s.column_stride,
            imin(kL, s.channels - c), hi - lo, strip + lo * kL);
    zero(strip + hi * kL, (width - hi) * kL);
  }
}

// One tile at an edge as patch[kSide][kSide][lane].
template <int kSide>
inline void fill_patch(const Image& s, const Grid& g, const float* src, std::int64_t y0, std::int64_t x0,
                       std::int64_t lanes, float* patch) {
  for (int i = 0; i < kSide; ++i)
    for (int j = 0; j < kSide; ++j, patch += kL) {
      const std::int64_t y = y0 + i * g.gap_h, x = x0 + j * g.gap_w;
      const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
      const float* at = src + y * s.row_stride + x * s.column_stride;
      store(patch, !inside ? F{} : lanes >= kL ? load(at) : load_n(at, lanes));
    }
}

// Transformed tiles: value xi of tile t, channel c at data[xi * plane + t * row + c].
struct Tiles {
  float* data;
  std::int64_t row, plane;
  Wanted wanted = {};  // of the values
};

template <int kSide>
inline void tile_in_place(const Image& s, const Grid& g, const float* plane, std::int64_t y0, std::int64_t x0,
                          std::int64_t c0, std::int64_t c1, float* patch, float* to, const Tiles& tiles) {
  const std::int64_t y1 = y0 + (kSide - 1) * g.gap_h, x1 = x0 + (kSide - 1) * g.gap_w;
  const bool inside = y0 >= 0 && y1 < s.height && x0 >= 0 && x1 < s.width;
  for (std::int64_t c = c0; c < c1; c += kL) {
    const float* src = plane + c;
    const std::int64_t lanes = s.channels - c;
    if (!inside) fill_patch<kSide>(s, g, src, y0, x0, lanes, patch);
    const float* rows[kSide];
    for (int i = 0; i < kSide; ++i)
      rows[i] =
          inside ? src + (y0 + i * g.gap_h) * s.row_stride + x0 * s.column_stride : patch + i * kSide * kL;
    if (inside && lanes < kL)
      transform_tile<kSide, false>(rows, g.gap_w * s.column_stride, lanes, to + c, tiles.plane, tiles.wanted);
    else
      transform_tile<kSide, true>(rows, inside ? g.gap_w * s.column_stride : kL, kL, to + c, tiles.plane,
                                  tiles.wanted);
  }
}

// Channels [c0, c1) of a run of tiles of kSide pixels a side, from one plane; c0 is a multiple of kL.
template <int kSide>
inline void transform_run(const Image& s, const Grid& g, const TileRun& run, const float* plane,
                          std::int64_t c0, std::int64_t c1, float* strip, const Tiles& tiles) {
  float* to = tiles.data + run.at * tiles.row;
  if (s.channel_stride == 1) {
    for (std::int64_t i = 0; i < run.length; ++i, to += tiles.row)
      tile_in_place<kSide>(s, g, plane, tile_row(s, g, run.row),
                           corner(g, run.column + i, g.gap_w) + s.first_w, c0, c1, strip, to, tiles);
    return;
  }
  // A whole cache line of channels per tile at a time: lines of the tiles are long gone from L1 when the next
  // strip comes.
  const std::int64_t width = run_width(g, run.length, kSide) * kL;
  for (std::int64_t c = c0; c < c1; c += kLine) {
    const std::int64_t end = imin(c1, c + kLine);
    for (std::int64_t k = c; k < end; k += kL)
      fill_strip<kSide>(s, g, run, plane, k, strip + (k - c) / kL * kSide * width);
    for (std::int64_t i = 0; i < run.length; ++i)
      for (std::int64_t k = c; k < end; k += kL) {
        const float* rows[kSide];
        for (int y = 0; y < kSide; ++y)
          rows[y] = strip + ((k - c) / kL * kSide + y) * width + corner(g, i, g.gap_w) * kL;
        transform_tile<kSide, true>(rows, g.gap_w * kL, kL, to + i * tiles.row + k, tiles.plane,
                                    tiles.wanted);
      }
  }
}

// V of a run, of one slice; planes outside the source are padding.
inline void input_run(const Dense& d, const Grid& g, const TileRun& run, const Slice& slice, std::int64_t c0,
                      std::int64_t c1, float* strip, const Tiles& v) {
  const Axis& a = d.axis[0];
  const std::int64_t at = run.plane * a.step + a.offset + slice.tap * a.offset_step;
  const Image s = source_image(d, slice);
  const Tiles to = {v.data, v.row, v.plane, slice.wanted};
  if (at >= 0 && at < a.source)
    return transform_run<kReach>(s, g, run, s.data + run.n * s.n_stride + at * a.source_stride, c0, c1, strip,
                                 to);
  for (std::int64_t i = 0; i < kPoints * run.length; ++i)
    zero(v.data + i / run.length * v.plane + (run.at + i % run.length) * v.row + c0,
         ceil_div(c1 - c0, kL) * kL);
}

}  // namespace
}  // namespace convnorm::conv
