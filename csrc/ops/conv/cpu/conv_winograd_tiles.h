// From the image to transformed tiles and back, in any layout, a vector of channels at a time. By weight, the
// gradient of the outputs is read by tiles as the inputs are.
//
//   channels at distance 1 (NHWC):  tiles are read and written where they lie
//   otherwise (NCHW):               by a strip of a few image rows whose pixels are vectors of channels:
//   squares of channels
//                                   x pixels are turned in registers on the way in and out
//
// Tiles that reach over the edge of the image see zeros there (padding), and write only what is inside.
//
// Include after cpu/conv_winograd_transform.h.
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

// Where tile i begins along an axis.
inline std::int64_t corner(const Grid& g, std::int64_t i, std::int64_t gap) {
  return gap == 1 ? i * g.tile : i / gap * gap * g.tile + i % gap;
}

inline Grid make_grid(const Dense& d) {
  Grid g{};
  g.tile = winograd_tile(d.axis[1].taps);
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

inline Image source_image(const Dense& d) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const auto first = [](const Axis& a) {
    return a.offset + imin(0, (a.taps - 1) * a.offset_step);
  };  // taps run either way
  return {static_cast<const float*>(d.src),
          d.src_n,
          d.src_c,
          d.red_c,
          h.source,
          w.source,
          h.source_stride,
          w.source_stride,
          first(h),
          first(w)};
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
// output channels.
inline std::int64_t strip_elements(const Grid& g, std::int64_t tiles) {
  return imax(kReach * kLine, g.tile * kColVecs * kL) * (g.tile * tiles + (kReach - g.tile) * g.gap_w);
}

// Pixels of a row under `tiles` neighbouring tiles of `side` pixels.
inline std::int64_t run_width(const Grid& g, std::int64_t tiles, std::int64_t side) {
  return g.tile * tiles + (side - g.tile) * g.gap_w;
}

// --- in
// -------------------------------------------------------------------------------------------------------------

// n pixels of `lanes` channels from src[channel * stride + x * step] to dst[x][lane]; missing channels are
// zero.
inline void turn_in(const float* src, std::int64_t stride, std::int64_t step, std::int64_t lanes,
                    std::int64_t n, float* dst) {
  if (step == 1 && n >= kL) {
    for (std::int64_t x = 0; x < n; x += kL) {
      const std::int64_t at = imin(x, n - kL);  // the last square overlaps the one before
      F square[kL];
      for (int c = 0; c < kL; ++c) square[c] = c < lanes ? load(src + c * stride + at) : F{};
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
};

template <int kSide>
inline void tile_in_place(const Image& s, const Grid& g, const float* plane, std::int64_t y0, std::int64_t x0,
                          std::int64_t c0, std::int64_t c1, float* patch, float* to, std::int64_t to_plane) {
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
      transform_tile<kSide, false>(rows, g.gap_w * s.column_stride, lanes, to + c, to_plane);
    else
      transform_tile<kSide, true>(rows, inside ? g.gap_w * s.column_stride : kL, kL, to + c, to_plane);
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
                           corner(g, run.column + i, g.gap_w) + s.first_w, c0, c1, strip, to, tiles.plane);
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
        transform_tile<kSide, true>(rows, g.gap_w * kL, kL, to + i * tiles.row + k, tiles.plane);
      }
  }
}

// V of a run, of the source plane under depth tap `tap`; planes outside the source are padding.
inline void input_run(const Dense& d, const Grid& g, const TileRun& run, std::int64_t tap, std::int64_t c0,
                      std::int64_t c1, float* strip, const Tiles& v) {
  const Axis& a = d.axis[0];
  const std::int64_t at = run.plane * a.step + a.offset + tap * a.offset_step;
  const Image s = source_image(d);
  if (at >= 0 && at < a.source)
    return transform_run<kReach>(s, g, run, s.data + run.n * s.n_stride + at * a.source_stride, c0, c1, strip,
                                 v);
  for (std::int64_t i = 0; i < kPoints * run.length; ++i)
    zero(v.data + i / run.length * v.plane + (run.at + i % run.length) * v.row + c0,
         ceil_div(c1 - c0, kL) * kL);
}

// --- out
// ------------------------------------------------------------------------------------------------------------

// What is added to outputs before they are written, laid out as they are, and whether they are clipped then.
struct Finish {
  const float* residual;  // or null
  bool clip;
  Finish from(std::int64_t offset) const { return {residual ? residual + offset : nullptr, clip}; }
  F operator()(F x, std::int64_t at) const {
    if (residual) x += load(residual + at);
    return clip ? relu(x) : x;
  }
  F operator()(F x, std::int64_t at, std::int64_t lanes) const {
    if (residual) x += load_n(residual + at, lanes);
    return clip ? relu(x) : x;
  }
  float operator()(float x, std::int64_t at) const {
    if (residual) x += residual[at];
    return clip && x < 0 ? 0 : x;
  }
};

// The reverse of turn_in: n pixels of src[x][lane] to dst[channel * stride + x * step].
inline void turn_out(const float* src, std::int64_t lanes, std::int64_t n, float* dst, std::int64_t stride,
                     std::int64_t step, const Finish& finish) {
  if (step == 1 && n >= kL) {
    for (std::int64_t x = 0; x < n; x += kL) {
      const std::int64_t at = imin(x, n - kL);
      F square[kL];
      for (int i = 0; i < kL; ++i) square[i] = load(src + (at + i) * kL);
      transpose<float>(square);
      for (int c = 0; c < kL; ++c)
        if (c < lanes) store(dst + c * stride + at, finish(square[c], c * stride + at));
    }
    return;
  }
  for (std::int64_t c = 0; c < lanes; ++c)
    for (std::int64_t x = 0; x < n; ++x)
      dst[c * stride + x * step] = finish(src[x * kL + c], c * stride + x * step);
}

// Stores the part of a tile that is inside the image.
template <int kTile>
inline void store_tile(const F (&out)[kTile][kTile], std::int64_t rows, std::int64_t columns,
                       std::int64_t lanes, float* dst, std::int64_t row_stride, std::int64_t column_stride,
                       const Finish& finish) {
  if (lanes >= kL && rows >= kTile && columns >= kTile) {
    for (int i = 0; i < kTile; ++i)
      for (int j = 0; j < kTile; ++j) {
        const std::int64_t at = i * row_stride + j * column_stride;
        store(dst + at, finish(out[i][j], at));
      }
    return;
  }
  for (std::int64_t i = 0; i < imin(rows, kTile); ++i)
    for (std::int64_t j = 0; j < imin(columns, kTile); ++j) {
      const std::int64_t at = i * row_stride + j * column_stride;
      lanes >= kL ? store(dst + at, finish(out[i][j], at))
                  : store_n(dst + at, finish(out[i][j], at, lanes), lanes);
    }
}

// Asks for the products of a tile, a line in each of 36 planes: too many streams for the hardware to follow.
inline void prefetch_products(const float* m, std::int64_t plane) {
  for (int xi = 0; xi < kPoints; ++xi) __builtin_prefetch(m + xi * plane);
}

// A panel of output channels of a run of tiles: `lanes` channels from dst on, of image run.n; products as in
// Tiles. Outputs are finished where they are written.
template <int kTile>
inline void output_run(const Dense& d, const Grid& g, const TileRun& run, const Tiles& products,
                       const F (&bias)[kColVecs], std::int64_t lanes, float* dst, float* strip) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const std::int64_t y0 = corner(g, run.row, g.gap_h), x0 = kTile * run.column;
  const std::int64_t rows = ceil_div(h.out - y0, g.gap_h), width = kTile * run.length * kL;
  const std::int64_t row_stride = g.gap_h * h.out_stride, column_stride = g.gap_w * w.out_stride;
  const std::int64_t vectors = ceil_div(lanes, kL);
  dst += run.n * d.dst_n + run.plane * d.axis[0].out_stride + y0 * h.out_stride + x0 * w.out_stride;
  const Finish finish{residual_at(d, dst), d.relu};
  const float* m = products.data + run.at * products.row;
  for (std::int64_t t = 0; t < run.length; ++t, m += products.row) {
    const std::int64_t x = corner(g, t, g.gap_w), columns = ceil_div(w.out - x0 - x, g.gap_w);
    prefetch_products(m + products.row, products.plane);
    for (std::int64_t v = 0; v < vectors; ++v) {
      F out[kTile][kTile];
      transform_back<kTile, false>(m + v * kL, products.plane, out);
      for (auto& row : out)
        for (F& x : row) x += bias[v];
      if (d.dst_c == 1)
        store_tile(out, rows, columns, lanes - v * kL, dst + v * kL + x * w.out_stride, row_stride,
                   column_stride, finish.from(v * kL + x * w.out_stride));
      else
        store_tile(out, kTile, kTile, kL, strip + v * kTile * width + x * kL, width, g.gap_w * kL, {});
    }
  }
  if (d.dst_c == 1) return;
  for (std::int64_t v = 0; v < vectors; ++v)
    for (std::int64_t i = 0; i < imin(rows, kTile); ++i)
      turn_out(strip + (v * kTile + i) * width, imin(kL, lanes - v * kL),
               imin(w.out - x0, kTile * run.length), dst + v * kL * d.dst_c + i * row_stride, d.dst_c,
               w.out_stride, finish.from(v * kL * d.dst_c + i * row_stride));
}

}  // namespace
}  // namespace convnorm::conv
