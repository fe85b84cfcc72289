// From products to results: transformed back, finished, and written in any layout, a vector of channels at a
// time (see conv_winograd_tiles.h).
//
// Include after conv_winograd_targets.h.
#pragma once

namespace convnorm::conv {
namespace {

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
[[gnu::always_inline]] inline void turn_out(const float* src, std::int64_t lanes, std::int64_t n, float* dst,
                                            std::int64_t stride, std::int64_t step, const Finish& finish) {
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
inline void store_tile(const F (&out)[kTile][kTile], Span rows, Span columns, std::int64_t lanes, float* dst,
                       std::int64_t row_stride, std::int64_t column_stride, const Finish& finish) {
  const auto whole = [](Span s) { return s.begin <= 0 && s.end >= kTile; };
  if (lanes >= kL && whole(rows) && whole(columns)) {
    for (int i = 0; i < kTile; ++i)
      for (int j = 0; j < kTile; ++j) {
        const std::int64_t at = i * row_stride + j * column_stride;
        store(dst + at, finish(out[i][j], at));
      }
    return;
  }
  for (std::int64_t i = imax(0, rows.begin); i < imin(rows.end, kTile); ++i)
    for (std::int64_t j = imax(0, columns.begin); j < imin(columns.end, kTile); ++j) {
      const std::int64_t at = i * row_stride + j * column_stride;
      lanes >= kL ? store(dst + at, finish(out[i][j], at))
                  : store_n(dst + at, finish(out[i][j], at, lanes), lanes);
    }
}

// Asks for the products of a tile, a line in each of 36 planes: too many streams for the hardware to follow.
inline void prefetch_products(const float* m, std::int64_t plane) {
  for (int xi = 0; xi < kPoints; ++xi) __builtin_prefetch(m + xi * plane);
}

// A panel of output channels, `lanes` from channel k on, of a run of tiles of a row of phases, whose products
// lie so many elements apart. Outputs are finished where they are written: pixels as vectors of channels at
// once; otherwise all phases of the run go to a strip, as they follow each other, which is turned.
template <int kTile>
class OutputRun {
 public:
  OutputRun(const Targets& targets, std::int64_t row, const Grid& g, const TileRun& run, std::int64_t k,
            std::int64_t lanes)
      : targets_(targets), row_(row * targets.phases), g_(g), run_(run), k_(k), lanes_(lanes) {}

  void write(const Tiles& products, std::int64_t apart, const F (&bias)[kColVecs], float* strip) const {
    for (std::int64_t i = 0; i < targets_.phases; ++i)
      write_tiles(i, products.data + i * apart + run_.at * products.row, products, bias, strip);
    if (targets_.joint.dst_c != 1) turn(strip);
  }

 private:
  std::int64_t vectors() const { return ceil_div(lanes_, kL); }
  std::int64_t width() const { return kTile * run_.length * targets_.phases * kL; }  // of a row of the strip

  // The part of tiles that begin at `at` inside an axis, every gap-th pixel.
  static Span inside(const Axis& a, std::int64_t at, std::int64_t gap) {
    return {at < 0 ? -at : 0, ceil_div(a.out - at, gap)};
  }

  // The tiles of one phase, whose products start at m.
  [[gnu::noinline]] void write_tiles(std::int64_t phase, const float* m, const Tiles& products,
                                     const F (&bias)[kColVecs], float* strip) const {
    const Target target = targets_.at(row_ + phase);
    const Dense& d = *target.d;
    const Axis &h = d.axis[1], &w = d.axis[2];
    const std::int64_t y = corner(g_, run_.row, g_.gap_h) - target.shift_h, vectors = this->vectors();
    const Span rows = inside(h, y, g_.gap_h);
    float* const line = static_cast<float*>(d.dst) + k_ + run_.n * d.dst_n +
                        run_.plane * d.axis[0].out_stride + y * h.out_stride;
    const Finish finish{residual_at(d, line), d.relu};
    const bool direct = d.dst_c == 1;
    const std::int64_t row_stride = direct ? g_.gap_h * h.out_stride : width();
    const std::int64_t column_stride = g_.gap_w * (direct ? w.out_stride : targets_.phases * kL);
    strip += targets_.place(phase) * kL;
    for (std::int64_t t = 0; t < run_.length; ++t, m += products.row) {
      const std::int64_t x = corner(g_, run_.column + t, g_.gap_w) - target.shift_w;
      const Span columns = inside(w, x, g_.gap_w);
      const std::int64_t pixel = corner(g_, t, g_.gap_w) * targets_.phases;
      prefetch_products(m + products.row, products.plane);
      for (std::int64_t v = 0; v < vectors; ++v) {
        F out[kTile][kTile];
        transform_back<kTile, false>(m + v * kL, products.plane, target.wanted, out);
        for (auto& row : out)
          for (F& value : row) value += bias[v];
        const std::int64_t at = v * kL + x * w.out_stride;
        if (direct)
          store_tile(out, rows, columns, lanes_ - v * kL, line + at, row_stride, column_stride,
                     finish.from(at));
        else
          store_tile(out, {0, kTile}, {0, kTile}, kL, strip + v * kTile * row_stride + pixel * kL, row_stride,
                     column_stride, {});
      }
    }
  }

  [[gnu::noinline]] void turn(const float* strip) const {
    const Target target = targets_.at(row_);
    const Dense& d = *target.d;
    const Axis &h = d.axis[1], &w = d.axis[2];
    std::int64_t across = 0;  // pixels of a row
    for (std::int64_t i = 0; i < targets_.phases; ++i) across += targets_.problems[row_ + i].axis[2].out;
    const std::int64_t y = corner(g_, run_.row, g_.gap_h) - target.shift_h;
    const std::int64_t x = kTile * run_.column * targets_.phases - targets_.before();
    const std::int64_t from = imax(0, -x), to = imin(across - x, width() / kL);
    const std::int64_t column_stride = w.out_stride / targets_.phases, row_stride = g_.gap_h * h.out_stride;
    float* dst = static_cast<float*>(d.dst) + k_ * d.dst_c + run_.n * d.dst_n +
                 run_.plane * d.axis[0].out_stride + y * h.out_stride + (x + from) * column_stride;
    const Finish finish{residual_at(d, dst), d.relu};
    const Span rows = inside(h, y, g_.gap_h);
    for (std::int64_t v = 0; v < vectors(); ++v)
      for (std::int64_t i = rows.begin; i < imin(rows.end, kTile); ++i) {
        const std::int64_t at = v * kL * d.dst_c + i * row_stride;
        turn_out(strip + (v * kTile + i) * width() + from * kL, imin(kL, lanes_ - v * kL), to - from,
                 dst + at, d.dst_c, column_stride, finish.from(at));
      }
  }

  const Targets& targets_;
  std::int64_t row_;  // of phases: its first target
  const Grid& g_;
  const TileRun& run_;
  std::int64_t k_, lanes_;
};

}  // namespace
}  // namespace convnorm::conv
