// From the image to transformed tiles and back, in any layout, a vector of channels at a time.
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

// The 4x4 tiles of all output images, in order (n, row, column).
struct Grid {
  std::int64_t rows, columns, tiles;
  std::int64_t first_h, first_w;  // source position of the corner of tile (0, 0)
};

inline Grid make_grid(const Dense& d) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  Grid g{ceil_div(h.out, kTile), ceil_div(w.out, kTile), 0, h.offset, w.offset};
  g.tiles = d.n * g.rows * g.columns;
  if (h.offset_step < 0) g.first_h -= 2;  // by input: the taps run backwards
  if (w.offset_step < 0) g.first_w -= 2;
  return g;
}

// Neighbouring tiles of one row of tiles; `at` counts from the start of the block they belong to.
struct TileRun {
  std::int64_t n, row, column, length, at;
};

template <class Body>
inline void each_run(const Grid& g, std::int64_t begin, std::int64_t end, Body&& body) {
  for (std::int64_t t = begin; t < end;) {
    const std::int64_t line = t / g.columns, column = t % g.columns;
    const std::int64_t length = imin(g.columns - column, end - t);
    body(TileRun{line / g.rows, line % g.rows, column, length, t - begin});
    t += length;
  }
}

// Elements of a strip over `tiles` tiles: six rows of a line of input channels, four of a panel of output
// channels.
inline std::int64_t strip_elements(std::int64_t tiles) {
  return imax(kReach * kLine, kTile * kColVecs * kL) * (kTile * tiles + 2);
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

// The six source rows under a run, from channel c: strip[row][pixel][lane].
inline void fill_strip(const Dense& d, const Grid& g, const TileRun& run, std::int64_t c, float* strip) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const float* src = static_cast<const float*>(d.src) + run.n * d.src_n + c * d.src_c;
  const std::int64_t width = kTile * run.length + 2, y0 = kTile * run.row + g.first_h,
                     x0 = kTile * run.column + g.first_w;
  const std::int64_t lo = imin(width, imax(0, -x0)), hi = imax(lo, imin(width, w.source - x0));
  for (int i = 0; i < kReach; ++i, strip += width * kL) {
    const std::int64_t y = y0 + i;
    if (y < 0 || y >= h.source) {
      zero(strip, width * kL);
      continue;
    }
    zero(strip, lo * kL);
    turn_in(src + y * h.source_stride + (x0 + lo) * w.source_stride, d.src_c, w.source_stride,
            imin(kL, d.red_c - c), hi - lo, strip + lo * kL);
    zero(strip + hi * kL, (width - hi) * kL);
  }
}

// One tile at an edge, or with fewer than kL channels left, as patch[6][6][lane].
inline void fill_patch(const Dense& d, const float* src, std::int64_t y0, std::int64_t x0, std::int64_t lanes,
                       float* patch) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  for (std::int64_t y = y0; y < y0 + kReach; ++y)
    for (std::int64_t x = x0; x < x0 + kReach; ++x, patch += kL) {
      const bool inside = y >= 0 && y < h.source && x >= 0 && x < w.source;
      const float* at = src + y * h.source_stride + x * w.source_stride;
      store(patch, !inside ? F{} : lanes >= kL ? load(at) : load_n(at, lanes));
    }
}

// Transformed tiles: value xi of tile t, channel c at data[xi * plane + t * row + c].
struct Tiles {
  float* data;
  std::int64_t row, plane;
};

inline void input_tile_in_place(const Dense& d, std::int64_t n, std::int64_t y0, std::int64_t x0,
                                std::int64_t c0, std::int64_t c1, float* patch, float* v,
                                std::int64_t plane) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const bool inside = y0 >= 0 && y0 + kReach <= h.source && x0 >= 0 && x0 + kReach <= w.source;
  const float* image = static_cast<const float*>(d.src) + n * d.src_n;
  for (std::int64_t c = c0; c < c1; c += kL) {
    const float* src = image + c;
    const bool direct = inside && c + kL <= d.red_c;
    if (!direct) fill_patch(d, src, y0, x0, d.red_c - c, patch);
    const float* rows[kReach];
    for (int i = 0; i < kReach; ++i)
      rows[i] = direct ? src + (y0 + i) * h.source_stride + x0 * w.source_stride : patch + i * kReach * kL;
    transform_input(rows, direct ? w.source_stride : kL, v + c, plane);
  }
}

// Channels [c0, c1) of a run of tiles; c0 is a multiple of kL.
inline void input_run(const Dense& d, const Grid& g, const TileRun& run, std::int64_t c0, std::int64_t c1,
                      float* strip, const Tiles& v) {
  float* to = v.data + run.at * v.row;
  if (d.src_c == 1) {
    for (std::int64_t i = 0; i < run.length; ++i, to += v.row)
      input_tile_in_place(d, run.n, kTile * run.row + g.first_h, kTile * (run.column + i) + g.first_w, c0, c1,
                          strip, to, v.plane);
    return;
  }
  // A whole cache line of channels per tile at a time: lines of V are long gone from L1 when the next strip
  // comes.
  const std::int64_t width = (kTile * run.length + 2) * kL;
  for (std::int64_t c = c0; c < c1; c += kLine) {
    const std::int64_t end = imin(c1, c + kLine);
    for (std::int64_t k = c; k < end; k += kL)
      fill_strip(d, g, run, k, strip + (k - c) / kL * kReach * width);
    for (std::int64_t i = 0; i < run.length; ++i)
      for (std::int64_t k = c; k < end; k += kL) {
        const float* rows[kReach];
        for (int y = 0; y < kReach; ++y)
          rows[y] = strip + ((k - c) / kL * kReach + y) * width + i * kTile * kL;
        transform_input(rows, kL, to + i * v.row + k, v.plane);
      }
  }
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
inline void output_run(const Dense& d, const TileRun& run, const Tiles& products, const F (&bias)[kColVecs],
                       std::int64_t lanes, float* dst, float* strip) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const std::int64_t rows = h.out - kTile * run.row, columns = w.out - kTile * run.column;
  const std::int64_t vectors = ceil_div(lanes, kL), width = kTile * run.length * kL;
  dst += run.n * d.dst_n + kTile * run.row * h.out_stride + kTile * run.column * w.out_stride;
  const Finish finish{residual_at(d, dst), d.relu};
  const float* m = products.data + run.at * products.row;
  for (std::int64_t t = 0; t < run.length; ++t, m += products.row) {
    prefetch_products(m + products.row, products.plane);
    for (std::int64_t v = 0; v < vectors; ++v) {
      F out[kTile][kTile];
      transform_output(m + v * kL, products.plane, bias[v], out);
      if (d.dst_c == 1)
        store_tile(out, rows, columns - kTile * t, lanes - v * kL, dst + v * kL + kTile * t * w.out_stride,
                   h.out_stride, w.out_stride, finish.from(v * kL + kTile * t * w.out_stride));
      else
        store_tile(out, kTile, kTile, kL, strip + v * kTile * width + kTile * t * kL, width, kL, {});
    }
  }
  if (d.dst_c == 1) return;
  for (std::int64_t v = 0; v < vectors; ++v)
    for (std::int64_t i = 0; i < imin(rows, kTile); ++i)
      turn_out(strip + (v * kTile + i) * width, imin(kL, lanes - v * kL), imin(columns, kTile * run.length),
               dst + v * kL * d.dst_c + i * h.out_stride, d.dst_c, w.out_stride,
               finish.from(v * kL * d.dst_c + i * h.out_stride));
}

}  // namespace
}  // namespace convnorm::conv
