// Forward and by input with few channels per group, into channels_last results:
//
//   out[pixel][k] = bias[k] + sum over taps t and channels c of x[pixel @ t][c] * w[t][c][k]
//
// A tile is up to 12 neighbouring pixels of a row by one vector of filters: a term is a load of w and a
// broadcast per pixel, from the packed rows of the image, without a copy or a pointer per tap.
//
//   pack w[t][c][k] of all groups                                     shared scratch, once per call
//   for task = (group, band of rows of one plane):                    in parallel, by shape alone
//     pack x[tap_d][row][w][c], padded                                L1
//     for row, vector of filters, tile: chains of taps, then a store
//
// Include after conv_grouped_pack.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr int kTilePixels = 12;

// Where a tap's operands are: in the packed rows under an output row, and in the packed weights.
struct GroupedTap {
  std::int64_t x, w;
};

template <class C>
struct PixelTile {
  const GroupedTap* taps;
  std::int64_t count, joined;  // taps; of a chain
  const C *x, *w, *bias;       // bias: a vector, or null
  std::int64_t step;           // from pixel to pixel of x
  std::int64_t channels, filters;
  const void* residual;  // of the first result, or null
  bool relu;
};

template <class C, int kPixels>
inline __attribute__((always_inline)) void add_tap(vec<C> (&acc)[kPixels], const C* x, const C* w,
                                                   std::int64_t step, std::int64_t channels,
                                                   std::int64_t filters) {
  constexpr int kRow = 4;  // pixels by one pointer
  const C* at[(kPixels + kRow - 1) / kRow];
  for (int i = 0; i * kRow < kPixels; ++i) at[i] = x + i * kRow * step;
#pragma GCC unroll 4
  for (std::int64_t c = 0; c < channels; ++c, w += filters) {
    const vec<C> weight = load(w);
    for (int m = 0; m < kPixels; ++m) acc[m] += splat<C>(at[m / kRow][m % kRow * step + c]) * weight;
  }
}

// The end of a tile: its sums with the residual and ReLU, to where the results lie.
template <class Tile, class V, class D, int kPixels>
inline __attribute__((always_inline)) void write_pixels(const Tile& t, V (&total)[kPixels], D* to,
                                                        std::int64_t to_step) {
  if (t.residual)
    for (int m = 0; m < kPixels; ++m) total[m] += load(static_cast<const D*>(t.residual) + m * to_step);
  if (t.relu)
    for (int m = 0; m < kPixels; ++m) total[m] = relu(total[m]);
  for (int m = 0; m < kPixels; ++m) store(to + m * to_step, total[m]);
}

// The functions of a kind of tile by its number of pixels.
template <class Makers>
struct ByPixels {
  typename Makers::Fn fn[Makers::kMost + 1] = {};
  template <int kPixels>
  constexpr void fill() {
    fn[kPixels] = Makers::template make<kPixels>;
    if constexpr (kPixels > 1) fill<kPixels - 1>();
  }
  constexpr ByPixels() { fill<Makers::kMost>(); }
};

// to[pixel * to_step] = a vector of results.
template <class C, class D, int kPixels>
void pixel_tile(const PixelTile<C>& t, D* to, std::int64_t to_step) {
  // The caches may not have the lines that the results go to: pixels are far apart.
  for (int m = 0; m < kPixels; ++m) __builtin_prefetch(to + m * to_step, 1);
  vec<C> total[kPixels];
  for (int m = 0; m < kPixels; ++m) total[m] = t.bias ? load(t.bias) : vec<C>{};
  for (std::int64_t i = 0; i < t.count;) {
    const std::int64_t end = imin(t.count, i + t.joined);
    vec<C> acc[kPixels];
    for (int m = 0; m < kPixels; ++m) acc[m] = vec<C>{};
    for (; i < end; ++i)
      add_tap<C, kPixels>(acc, t.x + t.taps[i].x, t.w + t.taps[i].w, t.step, t.channels, t.filters);
    for (int m = 0; m < kPixels; ++m) total[m] += acc[m];
  }
  write_pixels(t, total, to, to_step);
}

template <class C, class D>
struct PixelTileMakers {
  static constexpr int kMost = kTilePixels;
  using Fn = void (*)(const PixelTile<C>&, D*, std::int64_t);
  template <int kPixels>
  static constexpr Fn make = pixel_tile<C, D, kPixels>;
};
template <class C, class D>
inline constexpr ByPixels<PixelTileMakers<C, D>> kPixelTiles{};

template <class C>
struct GroupedRows {
  ImageRows image;
  std::int64_t band, bands;  // rows of outputs; per plane
  std::int64_t tiles, joined;
  std::int64_t weights;  // packed elements of a group
  std::int64_t plane;    // of the packed image, per tap along d
};

template <class C>
GroupedRows<C> make_grouped_rows(const Dense& d) {
  GroupedRows<C> p{};
  p.band = band_rows<C>(d, 0);
  p.bands = ceil_div(d.axis[1].out, p.band);
  p.image = image_rows(d, p.band);
  p.plane = p.image.rows * p.image.row;
  p.tiles = ceil_div(d.axis[2].out, kTilePixels);
  const std::int64_t taps = tap_count(d), most = imax(1, chain_limit(taps * d.red_c) / d.red_c);
  p.joined = imax(1, ceil_div(taps, imax(1, ceil_div(taps, most))));  // chains of equal length
  p.weights = taps * d.red_c * d.out_c;
  return p;
}

template <class C>
struct GroupedWork {
  C* x;
  GroupedTap* taps;
};

// The taps of a row of outputs that lie in the image; `row` is counted from the band's first. w_tap: packed
// weights of a tap.
template <class C>
std::int64_t list_taps(const Dense& d, const GroupedRows<C>& plan, std::int64_t out_d, std::int64_t h0,
                       std::int64_t row, std::int64_t w_tap, GroupedTap* out) {
  const Axis &depth = d.axis[0], &h = d.axis[1], &w = d.axis[2];
  const std::int64_t x_tap = w.offset_step * d.red_c;
  std::int64_t count = 0, in_d = out_d * depth.step + depth.offset;
  for (std::int64_t i = 0; i < depth.taps; ++i, in_d += depth.offset_step) {
    if (in_d < 0 || in_d >= depth.source) continue;
    std::int64_t in_h = (h0 + row) * h.step + h.offset;
    for (std::int64_t j = 0; j < h.taps; ++j, in_h += h.offset_step) {
      if (in_h < 0 || in_h >= h.source) continue;
      std::int64_t x = i * plan.plane + (in_h - h0 * h.step - plan.image.top) * plan.image.row +
                       (w.offset - plan.image.left) * d.red_c;
      std::int64_t weight = (i * h.taps + j) * w.taps * w_tap;
      for (std::int64_t t = 0; t < w.taps; ++t, x += x_tap, weight += w_tap) out[count++] = {x, weight};
    }
  }
  return count;
}

template <class C>
GroupedWork<C> make_grouped_work(const Dense& d, const GroupedRows<C>& plan) {
  return carve_scratch(Slot::local, [&](Arena& arena) {
    GroupedWork<C> work;
    work.x = arena.take<C>(imax(1, d.axis[0].taps) * plan.plane + kSlack<C>);
    work.taps = arena.take<GroupedTap>(tap_count(d));
    return work;
  });
}

// The image under a band, of every plane that a tap along d needs.
template <class C, class D>
void pack_band(const Dense& d, const GroupedRows<C>& plan, std::int64_t group, std::int64_t n,
               std::int64_t out_d, std::int64_t h0, std::int64_t rows, C* x) {
  const Axis& depth = d.axis[0];
  for (std::int64_t i = 0; i < depth.taps; ++i, x += plan.plane) {
    const std::int64_t in_d = out_d * depth.step + depth.offset + i * depth.offset_step;
    if (in_d >= 0 && in_d < depth.source) pack_image_rows<D>(d, plan.image, group, n, in_d, h0, rows, x);
  }
}

template <class C, class D>
void run_grouped_band(const Dense& d, const GroupedRows<C>& plan, const GroupedWork<C>& work,
                      const C* weights, const C* bias, std::int64_t group, std::int64_t task) {
  const Axis &depth = d.axis[0], &h = d.axis[1], &w = d.axis[2];
  const std::int64_t h0 = task % plan.bands * plan.band, rows = imin(plan.band, h.out - h0);
  const std::int64_t out_d = task / plan.bands % depth.out, n = task / plan.bands / depth.out;
  pack_band<C, D>(d, plan, group, n, out_d, h0, rows, work.x);
  D* dst = static_cast<D*>(d.dst) + n * d.dst_n + out_d * depth.out_stride + group * d.out_c;
  PixelTile<C> tile{};
  tile.taps = work.taps;
  tile.joined = plan.joined;
  tile.step = w.step * d.red_c;
  tile.channels = d.red_c;
  tile.filters = d.out_c;
  tile.relu = d.relu;
  for (std::int64_t r = 0; r < rows; ++r) {
    tile.count = list_taps(d, plan, out_d, h0, r, d.red_c * d.out_c, work.taps);
    for (std::int64_t k = 0; k < d.out_c; k += kLanes<C>) {
      tile.w = weights + group * plan.weights + k;
      tile.bias = bias ? bias + group * d.out_c + k : nullptr;
      D* to = dst + (h0 + r) * h.out_stride + k;
      for (std::int64_t i = 0; i < plan.tiles; ++i) {
        const std::int64_t first = w.out * i / plan.tiles, pixels = w.out * (i + 1) / plan.tiles - first;
        tile.x = work.x + first * tile.step;
        tile.residual = residual_at(d, to + first * w.out_stride);
        kPixelTiles<C, D>.fn[pixels](tile, to + first * w.out_stride, w.out_stride);
      }
    }
  }
}

template <class D>
void grouped(const Dense& d) {
  using C = compute_t<D>;
  const GroupedRows<C> plan = make_grouped_rows<C>(d);
  C *weights = nullptr, *bias = nullptr;
  carve_scratch(Slot::shared, [&](Arena& arena) {
    weights = arena.take<C>(d.groups * plan.weights + kSlack<C>);
    bias = arena.take<C>(d.bias ? d.groups * d.out_c : 0);
  });
  const Block all{0, tap_count(d), 0, d.red_c, 0};
  parallel_for(d.groups, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t g = begin; g < end; ++g)
      pack_weight_panel<D, C>(d, g, all, true, 0, d.out_c, d.out_c, weights + g * plan.weights);
  });
  if (d.bias) copy_run(bias, static_cast<const D*>(d.bias), d.groups * d.out_c);
  const std::int64_t bands = d.n * d.axis[0].out * plan.bands;
  parallel_for(d.groups * bands, 1, [&](std::int64_t begin, std::int64_t end) {
    const GroupedWork<C> work = make_grouped_work(d, plan);
    // Groups side by side in a task's order: they share the image's cache lines.
    for (std::int64_t i = begin; i < end; ++i)
      run_grouped_band<C, D>(d, plan, work, weights, d.bias ? bias : nullptr, i % d.groups, i / d.groups);
  });
}

}  // namespace
}  // namespace convnorm::conv
