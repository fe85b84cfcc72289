// Depthwise by weight with vectors over channels: NHWC.
//
//   task = (block of channels, share of the bands of rows):      in parallel
//     for each patch of a band:  list which taps are inside the image
//       for each vector of channels, few lines of taps:  add up over the pixels
//
// Places are pixels, lines lie along w. Source and gout are read where they lie.
//
// Include after conv_depthwise_channels.h and conv_depthwise_weight.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kPatch = 256;  // pixels of a patch, at most,
inline constexpr std::int64_t kPatchColumns = 64;
inline constexpr std::int64_t kWeighChannels = 256;  // of a task

// The tap that a line starts with.
struct FirstTap {
  std::int64_t td, th, tw;
};

template <class C>
struct ChannelWeigh {
  Dense d;
  TapOrder order;
  std::int64_t lines, groups;         // of taps; groups of lines that are summed together
  FirstTap* first;                    // of each line
  std::int64_t rows, columns, bands;  // of a patch; bands of rows of a plane
  ChannelVectors<C> vectors;
  std::int64_t block, blocks;  // of vectors
  Shares<C> shares;

  std::int64_t units() const { return d.n * d.axis[0].out * bands; }
};

// Columns [x0, x1) of rows [row, row + rows) of an output plane.
struct Patch {
  std::int64_t od, row, rows, x0, x1;
};

// The pieces of a patch for each group of lines, and where the lines lie.
struct PieceLists {
  Piece* piece;          // [group][kPatch]
  std::int64_t* pieces;  // [group]
  std::int64_t* line;
};

inline bool is_inside(const Axis& a, std::int64_t o, std::int64_t tap) {
  const std::int64_t at = o * a.step + a.offset + tap * a.offset_step;
  return at >= 0 && at < a.source;
}

// The taps of `lines` lines from l on that output (od, oh) has inside the image, whatever its column.
template <class C>
std::uint32_t row_taps(const ChannelWeigh<C>& plan, std::int64_t l, int lines, std::int64_t od,
                       std::int64_t oh) {
  const int k = plan.order.k;
  std::uint32_t taps = 0;
  for (int t = 0; t < lines; ++t)
    if (is_inside(plan.d.axis[0], od, plan.first[l + t].td) &&
        is_inside(plan.d.axis[1], oh, plan.first[l + t].th))
      taps |= all_taps(k) << (t * k);
  return taps;
}

// The same for column ow, whatever its row.
template <class C>
std::uint32_t column_taps(const ChannelWeigh<C>& plan, std::int64_t l, int lines, std::int64_t ow) {
  std::uint32_t taps = 0;
  for (int t = 0; t < lines; ++t)
    for (int k = 0; k < plan.order.k; ++k)
      if (is_inside(plan.d.axis[2], ow, plan.first[l + t].tw + k)) taps |= 1u << (t * plan.order.k + k);
  return taps;
}

// The pieces of a patch for some lines: pixels one by one near the ends of rows, the rest of a row at once.
template <class C>
std::int64_t list_pieces(const ChannelWeigh<C>& plan, std::int64_t l, int lines, const Patch& patch,
                         Piece* piece) {
  const Axis *a = plan.d.axis, &h = a[1], &w = a[2];
  const Inside first = inside(w.offset, w.step, w.source, w.out);
  const Inside last = inside(w.offset + (w.taps - 1) * w.offset_step, w.step, w.source, w.out);
  const Inside whole = {imax(first.begin, last.begin), imin(first.end, last.end)};
  std::int64_t n = 0;
  for (std::int64_t oh = patch.row; oh < patch.row + patch.rows; ++oh) {
    const std::uint32_t rows = row_taps(plan, l, lines, patch.od, oh);
    if (rows == 0) continue;
    const std::int64_t from = (patch.od * a[0].step + a[0].offset) * a[0].source_stride +
                              (oh * h.step + h.offset) * h.source_stride + w.offset * w.source_stride;
    for (std::int64_t x = patch.x0; x < patch.x1;) {
      const bool inner = x >= whole.begin && x < whole.end;
      const std::int64_t count = inner ? imin(whole.end, patch.x1) - x : 1;
      const std::uint32_t taps = inner ? rows : rows & column_taps(plan, l, lines, x);
      if (taps != 0)
        piece[n++] = {oh * h.out_stride + x * w.out_stride, from + x * w.step * w.source_stride, count, taps};
      x += count;
    }
  }
  return n;
}

// gout of a patch added to the sums of a vector's channels: a short float sum, joined in double.
template <class C, class D>
void add_bias(const D* gout, const Dense& d, const Patch& patch, double* sums) {
  const std::int64_t row = d.axis[1].out_stride, column = d.axis[2].out_stride;
  vec<C> sum{};
  for (std::int64_t oh = patch.row; oh < patch.row + patch.rows; ++oh) {
    const D* at = gout + oh * row + patch.x0 * column;
    for (std::int64_t x = patch.x0; x < patch.x1; ++x, at += column) sum += load(at);
  }
  for (int i = 0; i < kLanes<C>; ++i) sums[i] += static_cast<double>(sum[i]);
}

// A patch of image n, all taps.
template <class D, class C>
void weigh_patch(const ChannelWeigh<C>& plan, std::int64_t n, const Patch& patch, std::int64_t v0,
                 std::int64_t v1, std::int64_t share, const PieceLists& lists) {
  const Dense& d = plan.d;
  const Axis& w = d.axis[2];
  const int k = plan.order.k;
  std::int64_t groups = 0;
  each_line_group(k, 0, plan.lines, [&](std::int64_t l, int lines) {
    lists.pieces[groups] = list_pieces(plan, l, lines, patch, lists.piece + groups * kPatch);
    ++groups;
  });
  Weigh<C, D> job{};
  job.gout_step = w.out_stride;
  job.source_step = w.step * w.source_stride;
  job.pitch = w.offset_step * w.source_stride;
  for (std::int64_t v = v0; v < v1; ++v) {
    const std::int64_t c = plan.vectors.first(v);
    job.source = static_cast<const D*>(d.src) + n * d.src_n + c;
    job.gout = static_cast<const D*>(d.dst) + n * d.dst_n + patch.od * d.axis[0].out_stride + c;
    C* sums = plan.shares.sums_of(share, v);
    std::int64_t group = 0;
    each_line_group(k, 0, plan.lines, [&](std::int64_t l, int lines) {
      job.piece = lists.piece + group * kPatch;
      job.pieces = lists.pieces[group++];
      job.line = lists.line + l;
      job.sums = sums + l * k * kLanes<C>;
      if (job.pieces > 0) run_weigh<false>(k, lines > 1, job);
    });
    if (d.bias) add_bias<C>(job.gout, d, patch, plan.shares.bias_of(share, v));
  }
}

template <class D, class C>
void weigh_share(const ChannelWeigh<C>& plan, std::int64_t v0, std::int64_t v1, std::int64_t share,
                 const PieceLists& lists) {
  const Axis* a = plan.d.axis;
  const std::int64_t width = a[2].out, units = plan.units();
  clear(plan.shares.sums_of(share, v0), (v1 - v0) * plan.shares.taps * kLanes<C>);
  __builtin_memset(plan.shares.bias_of(share, v0), 0, (v1 - v0) * kLanes<C> * sizeof(double));
  for (std::int64_t u = units * share / plan.shares.count; u < units * (share + 1) / plan.shares.count; ++u) {
    const std::int64_t plane = u / plan.bands, row = u % plan.bands * plan.rows,
                       rows = imin(plan.rows, a[1].out - row);
    for (std::int64_t x = 0; x < width; x += plan.columns)
      weigh_patch<D>(plan, plane / a[0].out, {plane % a[0].out, row, rows, x, imin(width, x + plan.columns)},
                     v0, v1, share, lists);
  }
}

template <class D, class C>
ChannelWeigh<C> plan_channel_weigh(const Dense& d) {
  const Axis* a = d.axis;
  ChannelWeigh<C> plan{d, {2, line_taps(a[2], true)}};
  plan.lines = taps_of(d) / plan.order.k;
  each_line_group(plan.order.k, 0, plan.lines, [&](std::int64_t, int) { ++plan.groups; });
  plan.columns = piece_of(a[2].out, kPatchColumns, 1);
  plan.rows = piece_of(a[1].out, kPatch / plan.columns, 1);
  plan.bands = ceil_div(a[1].out, plan.rows);
  plan.vectors = {d.groups};
  plan.block = piece_of(plan.vectors.count(), kWeighChannels / kLanes<C>, 64 / CONVNORM_VECTOR_BYTES);
  plan.blocks = ceil_div(plan.vectors.count(), plan.block);
  const std::int64_t shares = imax(1, imin(ceil_div(kWantedShares, plan.blocks), plan.units()));
  plan.shares = {nullptr, nullptr, shares, plan.vectors.count(), taps_of(d), kLanes<C>};
  return plan;
}

template <class D>
void weigh_channels(const Dense& d) {
  using C = compute_t<D>;
  ChannelWeigh<C> plan = plan_channel_weigh<D, C>(d);
  PieceLists lists{};
  carve(Slot::shared, [&](Carver& memory) {
    plan.first = memory.take<FirstTap>(plan.lines);
    lists.line = memory.take<std::int64_t>(plan.lines);
    plan.shares.take(memory);
  });
  plan.order.each(d, [&](std::int64_t at, std::int64_t td, std::int64_t th, std::int64_t tw) {
    if (at % plan.order.k != 0) return;
    const Axis* a = d.axis;
    plan.first[at / plan.order.k] = {td, th, tw};
    lists.line[at / plan.order.k] = td * a[0].offset_step * a[0].source_stride +
                                    th * a[1].offset_step * a[1].source_stride +
                                    tw * a[2].offset_step * a[2].source_stride;
  });
  const std::int64_t shares = plan.shares.count, vectors = plan.shares.items;
  parallel_for(plan.blocks * shares, 1, [&](std::int64_t begin, std::int64_t end) {
    PieceLists own = lists;
    carve(Slot::local, [&](Carver& memory) {
      own.piece = memory.take<Piece>(plan.groups * kPatch);
      own.pieces = memory.take<std::int64_t>(plan.groups);
    });
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t v = i / shares * plan.block;
      weigh_share<D>(plan, v, imin(vectors, v + plan.block), i % shares, own);
    }
  });
  parallel_for(vectors, 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t v = begin; v < end; ++v) {
      const std::int64_t first = plan.vectors.first(v);
      for (std::int64_t lane = v * kLanes<C> - first; lane < kLanes<C>; ++lane)
        write_channel<D>(d, plan.shares, plan.order, first + lane, v, lane);
    }
  });
}

}  // namespace
}  // namespace convnorm::conv
