// By weight with few channels per group: gw[t][k][c] = sum over pixels of gout[pixel][k] * x[pixel @ t][c].
//
// 8 filters by 8 channels are too little for the tiles of the implicit GEMM. A tile is 4 filters by 3
// neighbouring taps of a window row by a vector of channels: 12 accumulators take 3 loads and 4 broadcasts
// per pixel, and nothing is copied per tap.
//
//   for task = (group, split of the rows of outputs):           in parallel, by shape alone
//     for band of rows of one plane, which stays in L1:
//       pack gout[row][w][k] and x[row][w][c], padded
//       for window row, 4 filters, vector of channels, 3 taps:  chains of FMAs over pixels, added to the sums
//   add the splits in order and write gw                        in parallel over groups
//
// Include after conv_igemm_weight.h and conv_grouped_pack.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr int kFilterTile = 4, kTapTile = 3;

template <class C>
struct GroupedPlan {
  std::int64_t rows, splits;    // rows of outputs, of all planes
  std::int64_t band;            // rows of outputs
  ImageRows image;              // under a band
  std::int64_t gout_row, part;  // elements of a packed row of gout, and of the sums of a group
  std::int64_t limit, piece;    // of a chain, and of what it is made of
};

template <class C>
GroupedPlan<C> make_grouped_plan(const Dense& d) {
  const Axis& w = d.axis[2];
  GroupedPlan<C> p{};
  p.rows = d.n * d.axis[0].out * d.axis[1].out;
  p.splits = imax(1, imin(ceil_div(kWantedWeightTasks, d.groups), p.rows * w.out / kLeastSplit));
  p.gout_row = w.out * d.out_c;
  p.band = band_rows<C>(d, p.gout_row);
  p.image = image_rows(d, p.band);
  p.part = tap_count(d) * d.out_c * d.red_c;
  p.limit = chain_limit(p.rows * w.out);
  p.piece = piece_length(w.out, p.limit);
  return p;
}

// The rows [low, high) of a band whose window row lies in the image, and where their operands are.
template <class C>
struct Products {
  const C *x, *gout;
  std::int64_t rows, width;
  std::int64_t x_row, x_step, x_tap;  // from row to row, pixel to pixel, tap to tap
  std::int64_t gout_row, filters;
  std::int64_t limit, piece;
  C* sums;
  std::int64_t sums_tap, channels;
};

template <class C, int kTaps>
void add_products(const Products<C>& p) {
  vec<C> acc[kFilterTile][kTaps];
  clear<C>(acc);
  const auto add_chain = [&]() __attribute__((always_inline)) {
    for (int m = 0; m < kFilterTile; ++m)
      for (int t = 0; t < kTaps; ++t) {
        C* to = p.sums + t * p.sums_tap + m * p.channels;
        store(to, load(to) + acc[m][t]);
      }
    clear<C>(acc);
  };
  const std::int64_t x_step = p.x_step, x_tap = p.x_tap, filters = p.filters;
  std::int64_t chain = 0;
  for (std::int64_t r = 0; r < p.rows; ++r)
    for (std::int64_t w = 0; w < p.width; w += p.piece) {
      const std::int64_t n = imin(p.piece, p.width - w);
      if (chain + n > p.limit) add_chain(), chain = 0;
      chain += n;
      const C* x = p.x + r * p.x_row + w * x_step;
      const C* g = p.gout + r * p.gout_row + w * filters;
#pragma GCC unroll 2
      for (std::int64_t i = 0; i < n; ++i, x += x_step, g += filters) {
        vec<C> taps[kTaps];
        for (int t = 0; t < kTaps; ++t) taps[t] = load(x + t * x_tap);
        for (int m = 0; m < kFilterTile; ++m) {
          const vec<C> value = splat<C>(g[m]);
          for (int t = 0; t < kTaps; ++t) acc[m][t] += value * taps[t];
        }
      }
    }
  add_chain();
}

template <class C>
struct GroupedTask {
  const Dense* d;
  const GroupedPlan<C>* plan;
  std::int64_t group;
  C *sums, *x, *gout;
  double* bias;  // of this (split, group), or null
};

// The band's rows of one window row (tap_d, tap_h): all filters, channels and taps of it.
template <class C>
void add_window_row(const GroupedTask<C>& t, std::int64_t h0, std::int64_t rows, std::int64_t tap_d,
                    std::int64_t tap_h) {
  const Dense& d = *t.d;
  const GroupedPlan<C>& plan = *t.plan;
  const Axis &h = d.axis[1], &w = d.axis[2];
  const std::int64_t first = h0 * h.step + h.offset + tap_h * h.offset_step;  // image row of the band's first
  const std::int64_t low = first < 0 ? imin(rows, ceil_div(-first, h.step)) : 0;
  const std::int64_t high = first < h.source ? imin(rows, ceil_div(h.source - first, h.step)) : 0;
  if (low >= high) return;
  Products<C> p{};
  p.rows = high - low;
  p.width = w.out;
  p.x_row = h.step * plan.image.row;
  p.x_step = w.step * d.red_c;
  p.x_tap = w.offset_step * d.red_c;
  p.gout_row = plan.gout_row;
  p.filters = d.out_c;
  p.limit = plan.limit;
  p.piece = plan.piece;
  p.channels = d.red_c;
  p.sums_tap = d.out_c * d.red_c;
  const C* x = t.x + (tap_h * h.offset_step + low * h.step) * plan.image.row;
  C* sums = t.sums + (tap_d * h.taps + tap_h) * w.taps * p.sums_tap;
  for (std::int64_t k = 0; k < d.out_c; k += kFilterTile)
    for (std::int64_t c = 0; c < d.red_c; c += kLanes<C>)
      for (std::int64_t tap = 0; tap < w.taps; tap += kTapTile) {
        p.x = x + tap * p.x_tap + c;
        p.gout = t.gout + low * plan.gout_row + k;
        p.sums = sums + tap * p.sums_tap + k * d.red_c + c;
        const std::int64_t taps = imin(kTapTile, w.taps - tap);
        taps == 3 ? add_products<C, 3>(p) : taps == 2 ? add_products<C, 2>(p) : add_products<C, 1>(p);
      }
}

// Rows [h0, h0 + rows) of outputs of the plane (n, out_d).
template <class C, class S>
void run_band(const GroupedTask<C>& t, std::int64_t n, std::int64_t out_d, std::int64_t h0,
              std::int64_t rows) {
  const Dense& d = *t.d;
  const GroupedPlan<C>& plan = *t.plan;
  const Axis &depth = d.axis[0], &h = d.axis[1], &w = d.axis[2];
  const S* gout = static_cast<const S*>(d.dst) + t.group * d.out_c * d.dst_c + n * d.dst_n +
                  out_d * depth.out_stride + h0 * h.out_stride;
  for (std::int64_t r = 0; r < rows; ++r)
    pack_pixels(gout + r * h.out_stride, w.out_stride, d.dst_c, d.out_c, w.out, t.gout + r * plan.gout_row);
  if (t.bias) add_bias_sums(t.gout, rows * w.out, d.out_c, d.out_c, true, t.bias);
  for (std::int64_t tap_d = 0; tap_d < depth.taps; ++tap_d) {
    const std::int64_t in_d = out_d * depth.step + depth.offset + tap_d * depth.offset_step;
    if (in_d < 0 || in_d >= depth.source) continue;
    pack_image_rows<S>(d, plan.image, t.group, n, in_d, h0, rows, t.x);
    for (std::int64_t tap_h = 0; tap_h < h.taps; ++tap_h) add_window_row(t, h0, rows, tap_d, tap_h);
  }
}

// gw and grad_bias of a group from the splits' sums, in order.
template <class C, class D>
void write_group(const Dense& d, const GroupedPlan<C>& plan, const C* parts, const double* bias,
                 std::int64_t group) {
  const Parts<C> sums{parts + group * plan.part, plan.splits, d.groups * plan.part};
  D* out = static_cast<D*>(d.weight) + group * d.weight_group;
  for (std::int64_t t = 0; t < tap_count(d); ++t) {
    D* at = out + weight_of_tap(d, t);
    for (std::int64_t k = 0; k < d.out_c; ++k)
      write_row(sums, (t * d.out_c + k) * d.red_c, d.red_c, at + k * d.weight_out, d.weight_red);
  }
  for (std::int64_t k = group * d.out_c; d.bias && k < (group + 1) * d.out_c; ++k) {
    double sum = 0;
    for (std::int64_t s = 0; s < plan.splits; ++s) sum += bias[s * d.groups * d.out_c + k];
    store1(static_cast<D*>(d.bias) + k, C(sum));
  }
}

template <class D>
void grouped_by_weight(const Dense& d) {
  using C = compute_t<D>;
  const GroupedPlan<C> plan = make_grouped_plan<C>(d);
  double* bias = nullptr;
  C* parts = nullptr;
  carve_scratch(Slot::shared, [&](Arena& arena) {
    bias = arena.take<double>(plan.splits * d.groups * d.out_c);
    parts = arena.take<C>(plan.splits * d.groups * plan.part);
  });
  for (std::int64_t i = 0; i < plan.splits * d.groups * d.out_c; ++i) bias[i] = 0;
  zero(parts, plan.splits * d.groups * plan.part);
  const std::int64_t height = d.axis[1].out;
  parallel_for(d.groups * plan.splits, 1, [&](std::int64_t begin, std::int64_t end) {
    GroupedTask<C> t{};
    t.d = &d;
    t.plan = &plan;
    carve_scratch(Slot::local, [&](Arena& arena) {
      t.x = arena.take<C>(plan.image.rows * plan.image.row + kSlack<C>);
      t.gout = arena.take<C>(plan.band * plan.gout_row + kSlack<C>);
    });
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t split = i % plan.splits;
      t.group = i / plan.splits;
      t.sums = parts + (split * d.groups + t.group) * plan.part;
      t.bias = d.bias ? bias + (split * d.groups + t.group) * d.out_c : nullptr;
      const std::int64_t last = plan.rows * (split + 1) / plan.splits;
      for (std::int64_t r = plan.rows * split / plan.splits; r < last;) {
        const std::int64_t h0 = r % height, plane = r / height;
        const std::int64_t rows = imin(imin(plan.band, height - h0), last - r);
        run_band<C, D>(t, plane / d.axis[0].out, plane % d.axis[0].out, h0, rows);
        r += rows;
      }
    }
  });
  parallel_for(d.groups, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t g = begin; g < end; ++g) write_group<C, D>(d, plan, parts, bias, g);
  });
}

void run_grouped_by_weight(const Dense& d) {
  dispatch(d.dtype, [&](auto tag) { grouped_by_weight<decltype(tag)>(d); });
}

}  // namespace
}  // namespace convnorm::conv
