// Forward and by input with groups of fewer channels than a vector has lanes, as many filters as channels, in
// channels_last: several groups side by side in a vector.
//
//   out[pixel][g, k] = bias + sum over taps t and channels c of x[pixel @ t][g, c] * w[t][c][g, k]
//
// Lanes (g, k) of a term all need channel c of their own group: a permutation of the pixel's vector, which
// serves the three taps of a window row and so three outputs. A tile is 12 neighbouring pixels (5 where there
// are 16 registers) by one vector.
//
//   pack w[t][c][g, k]                                                shared scratch, once per call
//   for task = (vector of groups, band of rows of one plane):         in parallel, by shape alone
//     pack x[tap_d][row][w][g, c], padded                             L1
//     for row, tile: a chain per window row, then a store
//
// Include after conv_grouped.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr int kLanePixels = CONVNORM_VECTOR_BYTES == 64 ? 12 : 5;
inline constexpr int kLaneTaps = 3;  // of a window row

template <class C>
struct LaneTile {
  const GroupedTap* rows;  // of the window: its leftmost column, and the weights of the tap there
  std::int64_t count;
  const C *x, *w, *bias;  // bias: a vector, or null
  std::int64_t tap;       // from one column's weights to the next one's
  std::int64_t channels;
  const void* residual;  // of the first result, or null
  bool relu;
};

// One window row: acc[pixel] += its three taps.
template <class C, int kPixels>
inline __attribute__((always_inline)) void add_lane_row(vec<C> (&acc)[kPixels], const C* x, const C* w,
                                                        std::int64_t tap, std::int64_t channels) {
  constexpr int L = kLanes<C>;
  ivec<C> lane;
  for (int l = 0; l < L; ++l) lane[l] = l / channels * channels;
  for (std::int64_t c = 0; c < channels; ++c, w += L, lane += 1) {
    const vec<C> weight[kLaneTaps] = {load(w), load(w + tap), load(w + 2 * tap)};
    for (int j = 0; j < kPixels + kLaneTaps - 1; ++j) {
      const vec<C> value = __builtin_shuffle(load(x + j * L), lane);
      for (int t = 0; t < kLaneTaps; ++t)
        if (j >= t && j - t < kPixels) acc[j - t] += value * weight[t];
    }
  }
}

// to[pixel * to_step] = a vector of results.
template <class C, class D, int kPixels>
void lane_tile(const LaneTile<C>& t, D* to, std::int64_t to_step) {
  vec<C> total[kPixels];
  for (int m = 0; m < kPixels; ++m) total[m] = t.bias ? load(t.bias) : vec<C>{};
  for (std::int64_t i = 0; i < t.count; ++i) {
    vec<C> acc[kPixels];
    for (int m = 0; m < kPixels; ++m) acc[m] = vec<C>{};
    add_lane_row<C, kPixels>(acc, t.x + t.rows[i].x, t.w + t.rows[i].w, t.tap, t.channels);
    for (int m = 0; m < kPixels; ++m) total[m] += acc[m];
  }
  write_pixels(t, total, to, to_step);
}

template <class C, class D>
struct LaneTileMakers {
  static constexpr int kMost = kLanePixels;
  using Fn = void (*)(const LaneTile<C>&, D*, std::int64_t);
  template <int kPixels>
  static constexpr Fn make = lane_tile<C, D, kPixels>;
};
template <class C, class D>
inline constexpr ByPixels<LaneTileMakers<C, D>> kLaneTiles{};

// Whether groups share vectors: the host's refusals leave other channels and layouts out. A residue of a
// stride may have no taps at all.
template <class C>
bool lanes_serve(const Dense& d) {
  const Axis& w = d.axis[2];
  const bool row = w.taps == kLaneTaps && w.step == 1 && w.offset_step * w.offset_step == 1;
  return d.red_c == d.out_c && d.red_c < kLanes<C> && kLanes<C> % d.red_c == 0 &&
         d.groups * d.red_c % kLanes<C> == 0 && d.src_c == 1 && (row || tap_count(d) == 0);
}

// Weights of one vector of groups, as w[t][c][g, k].
template <class C, class D>
void pack_lane_weights(const Dense& d, std::int64_t vector, C* out) {
  const std::int64_t groups = kLanes<C> / d.red_c;
  const D* base = static_cast<const D*>(d.weight) + vector * groups * d.weight_group;
  for (std::int64_t t = 0; t < tap_count(d); ++t) {
    const D* at = base + weight_of_tap(d, t);
    for (std::int64_t c = 0; c < d.red_c; ++c)
      for (std::int64_t g = 0; g < groups; ++g)
        for (std::int64_t k = 0; k < d.out_c; ++k)
          *out++ = load1(at + g * d.weight_group + k * d.weight_out + c * d.weight_red);
  }
}

// `wide`: the problem as one of whole vectors per group, for what only reads or writes images.
template <class C, class D>
void run_lane_band(const Dense& d, const Dense& wide, const GroupedRows<C>& plan, const GroupedWork<C>& work,
                   const C* weights, const C* bias, std::int64_t vector, std::int64_t task) {
  const Axis &depth = d.axis[0], &h = d.axis[1], &w = d.axis[2];
  const std::int64_t h0 = task % plan.bands * plan.band, rows = imin(plan.band, h.out - h0);
  const std::int64_t out_d = task / plan.bands % depth.out, n = task / plan.bands / depth.out;
  pack_band<C, D>(wide, plan, vector, n, out_d, h0, rows, work.x);
  const std::int64_t w_tap = d.red_c * kLanes<C>;
  const bool backwards = w.offset_step < 0;
  LaneTile<C> tile{};
  tile.rows = work.taps;
  tile.w = weights;
  tile.tap = backwards ? -w_tap : w_tap;
  tile.channels = d.red_c;
  tile.bias = bias;
  tile.relu = d.relu;
  D* dst = static_cast<D*>(d.dst) + n * d.dst_n + out_d * depth.out_stride + vector * kLanes<C>;
  const std::int64_t tiles = ceil_div(w.out, kLanePixels);
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t taps = list_taps(wide, plan, out_d, h0, r, w_tap, work.taps);
    tile.count = taps / kLaneTaps;
    for (std::int64_t i = 0; i < tile.count; ++i)
      work.taps[i] = work.taps[i * kLaneTaps + (backwards ? kLaneTaps - 1 : 0)];
    D* to = dst + (h0 + r) * h.out_stride;
    for (std::int64_t i = 0; i < tiles; ++i) {
      const std::int64_t first = w.out * i / tiles, pixels = w.out * (i + 1) / tiles - first;
      tile.x = work.x + first * kLanes<C>;
      tile.residual = residual_at(d, to + first * w.out_stride);
      kLaneTiles<C, D>.fn[pixels](tile, to + first * w.out_stride, w.out_stride);
    }
  }
}

template <class D>
void grouped_by_lanes(const Dense& d) {
  using C = compute_t<D>;
  constexpr std::int64_t L = kLanes<C>;
  Dense wide = d;
  wide.red_c = wide.out_c = L;
  wide.groups = d.groups * d.red_c / L;
  const GroupedRows<C> plan = make_grouped_rows<C>(wide);
  const std::int64_t panel = tap_count(d) * d.red_c * L;
  C *weights = nullptr, *bias = nullptr;
  carve_scratch(Slot::shared, [&](Arena& arena) {
    weights = arena.take<C>(wide.groups * panel);
    return bias = arena.take<C>(d.bias ? wide.groups * L : 0);
  });
  parallel_for(wide.groups, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t v = begin; v < end; ++v) pack_lane_weights<C, D>(d, v, weights + v * panel);
  });
  if (d.bias) copy_run(bias, static_cast<const D*>(d.bias), wide.groups * L);
  const std::int64_t bands = d.n * d.axis[0].out * plan.bands;
  parallel_for(wide.groups * bands, 1, [&](std::int64_t begin, std::int64_t end) {
    const GroupedWork<C> work = make_grouped_work(d, plan);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t v = i % wide.groups;
      run_lane_band<C, D>(d, wide, plan, work, weights + v * panel, d.bias ? bias + v * L : nullptr, v,
                          i / wide.groups);
    }
  });
}

void run_grouped(const Dense& d) {
  dispatch(d.dtype, [&](auto tag) {
    using D = decltype(tag);
    lanes_serve<compute_t<D>>(d) ? grouped_by_lanes<D>(d) : grouped<D>(d);
  });
}

}  // namespace
}  // namespace convnorm::conv
