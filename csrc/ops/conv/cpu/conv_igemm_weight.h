// Implicit GEMM by weight: gw[k][r] = sum over pixels of gout[pixel][k] * patch[pixel][r], with r = (channel,
// tap).
//
// The same tiles and the same patches as forward, with pixels as the long dimension:
//
//   NCHW:  tile rows = r (P[r][pixel], by rows), columns = k (gout packed to [k / 16][pixel][16])
//   NHWC:  tile rows = k (gout packed to [k / 6][pixel][6], interleaved; read in place where it would be read
//          by few columns), columns = r (P[pixel][r])
//
//   for task = (group, block of r, block of k, split of the pixels):     in parallel, by shape alone
//     for chunk of 192 pixels:  pack patches and gout (L2), run tiles, adding to the task's part of the sum
//   add the splits in order and write gw                                 in parallel over k
//
// In NHWC with few channels a padded copy takes the place of the patches (conv_igemm_weight_window.h).
//
// grad_bias is summed from the packed gout by the tasks of the first block of r.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kChunk = 192;  // pixels per pass: patches and gout together fit L2
inline constexpr std::int64_t kLeastSplit = 4 * kChunk;
inline constexpr std::int64_t kWantedWeightTasks = 16;
inline constexpr std::int64_t kOutBlock = 256;  // output channels per task
// Of a block of r, for each of which gout is packed again: what lets its patches fit half of L2.
inline constexpr std::int64_t kWeightDepth = CONVNORM_VECTOR_BYTES == 64 ? 512 : 320;
inline constexpr std::int64_t kLeastDepth = 64;
inline constexpr std::int64_t kFewColumns = 4;  // of tiles: more are worth packing gout for

template <class C>
struct WeightPlan {
  bool channel_rows;
  bool gout_in_place;
  bool windowed;
  Cut cut;
  std::int64_t pixels, splits, out_blocks, groups;
  std::int64_t lanes;  // output channels of a packed gout panel,
  std::int64_t width;  // and its row length
  std::int64_t depth;  // longest block of r
  // Columns of r lie in groups of so many taps, group_ld apart: all taps of a block, or a window row.
  std::int64_t group_taps, group_ld;
  std::int64_t rows, ld;  // the partial sum of one (split, group): rows x ld
  std::int64_t tasks() const { return groups * cut.count() * out_blocks * splits; }
  std::int64_t part() const { return rows * ld; }
  std::int64_t first_out(std::int64_t i, std::int64_t out_c) const {
    return imin(out_c, ceil_div(out_c, out_blocks * lanes) * lanes * i);
  }
  std::int64_t chunk() const { return windowed ? kWindowChunk : kChunk; }
  std::int64_t first_pixel(std::int64_t split) const { return pixels * split / splits; }
};

// The pixels of gout are at one distance.
inline bool out_pixels_follow(const Dense& d) {
  const Axis* a = d.axis;
  const std::int64_t row = a[2].out * a[2].out_stride, plane = a[1].out * row;
  return (a[1].out == 1 || a[1].out_stride == row) && (a[0].out == 1 || a[0].out_stride == plane) &&
         (d.n == 1 || d.dst_n == a[0].out * plane);
}

template <class C>
WeightPlan<C> make_weight_plan(const Dense& d, bool same_type) {
  WeightPlan<C> p{};
  p.channel_rows = d.src_c == 1 && !(d.red_c == 1 && d.axis[2].source_stride == 1);
  p.windowed = p.channel_rows && weight_window_serves<C>(d);
  p.groups = d.groups;
  p.pixels = d.n * d.axis[0].out * d.axis[1].out * d.axis[2].out;
  p.width = p.channel_rows ? kRows : kCols<C>;
  p.lanes = p.channel_rows ? ceil_div(d.out_c, ceil_div(d.out_c, kRows)) : kCols<C>;  // tiles of equal height
  p.out_blocks = ceil_div(d.out_c, kOutBlock);
  const std::int64_t least = ceil_div(tap_count(d) * d.red_c, kLeastDepth);
  const std::int64_t wanted = ceil_div(kWantedWeightTasks, p.groups * p.out_blocks * least);
  p.splits = imax(1, imin(wanted, p.pixels / kLeastSplit));
  // Shorter blocks where threads would have nothing to do; an element's sum is the same in any.
  const std::int64_t row = p.windowed ? d.axis[2].taps : 1;  // a window row stays whole
  std::int64_t most = kWeightDepth;
  do {
    p.cut = make_cut(d, p.channel_rows, p.windowed ? imax(most, row * d.red_c) : most, row);
    most /= 2;
  } while (p.tasks() < 2 * parallel_width() && most >= kLeastDepth);
  p.group_taps = p.windowed ? d.axis[2].taps : imax(1, p.cut.most_taps());
  p.group_ld = ceil_div(p.group_taps * p.cut.most_channels(), kLanes<C>) * kLanes<C>;
  p.depth = ceil_div(p.cut.most_taps(), p.group_taps) * (p.windowed ? p.group_ld : p.cut.depth());
  p.gout_in_place = p.channel_rows && same_type && d.dst_c == 1 && out_pixels_follow(d) &&
                    tap_count(d) * d.red_c <= kFewColumns * kCols<C>;
  const std::int64_t out = ceil_div(d.out_c, p.lanes) * p.lanes;
  p.rows = p.channel_rows ? out : p.cut.count() * p.depth;
  p.ld = p.channel_rows ? p.cut.count() * round_up_line<C>(p.depth) : out;
  return p;
}

template <class C>
struct WeightTask {
  const Dense* d;
  const WeightPlan<C>* plan;
  std::int64_t group, block, k0, k1, pixel0, pixel1;
  C* part;
  double* bias_part;  // of this (split, group), or null
  C *patches, *gout;
  std::int64_t* lines;   // of the rows of a part
  std::int64_t* copied;  // windowed: where each pixel is in the copy, then each window row
  Segment* segments;
  Run* runs;
};

// Channels [k0, k0 + lanes) of gout at the pixels of the segments, as panel[pixel][width].
template <class S, class C>
void pack_gout_panel(const Dense& d, std::int64_t group, std::int64_t k0, std::int64_t lanes,
                     std::int64_t width, const Segment* segments, std::int64_t count, C* panel) {
  constexpr int L = kLanes<C>;
  const S* src = static_cast<const S*>(d.dst) + (group * d.out_c + k0) * d.dst_c;
  const std::int64_t step = d.axis[2].out_stride;
  if (lanes < width) zero(panel, (segments[count - 1].at + segments[count - 1].len) * width);
  for (std::int64_t s = 0; s < count; ++s) {
    const Segment& g = segments[s];
    const S* at = src + g.n * d.dst_n + g.d * d.axis[0].out_stride + g.h * d.axis[1].out_stride + g.w * step;
    C* out = panel + g.at * width;
    if (d.dst_c == 1) {
      // Whole vectors: what they spill into is the next pixel's, or the next panel's, written later.
      const S* end = destination_end<S>(d);
      std::int64_t i = 0;
      for (; i < g.len && at + i * step + ceil_div(lanes, L) * L <= end; ++i)
        for (std::int64_t v = 0; v < lanes; v += L) store(out + i * width + v, load(at + i * step + v));
      for (; i < g.len; ++i) copy_run(out + i * width, at + i * step, lanes);
    } else if (step == 1) {
      transpose_lanes(at, d.dst_c, lanes, g.len, out, width);
    } else {
      for (std::int64_t i = 0; i < g.len; ++i)
        for (std::int64_t o = 0; o < lanes; ++o) out[i * width + o] = load1(at + o * d.dst_c + i * step);
    }
  }
}

// Where gout has the channels of the task at pixel x.
template <class C>
const C* out_pixels(const WeightTask<C>& t, std::int64_t x) {
  const Dense& d = *t.d;
  return static_cast<const C*>(d.dst) + x * d.axis[2].out_stride + t.group * d.out_c + t.k0;
}

template <class C>
void weight_tiles(const WeightTask<C>& t, const Block& b, std::int64_t at, std::int64_t pixels,
                  std::int64_t ldp) {
  const WeightPlan<C>& plan = *t.plan;
  const C* gout = plan.gout_in_place ? out_pixels(t, at) : t.gout;
  TileBlock<C> tiles{};
  tiles.columns = 1;
  tiles.depth = pixels;
  tiles.piece = piece_length(pixels, chain_limit(t.pixel1 - t.pixel0));
  tiles.start = at == t.pixel0 ? Start::zero : Start::add_to_c;
  const std::int64_t r = b.depth(), k = t.k1 - t.k0;
  const std::int64_t columns = plan.channel_rows ? r : k, rows = plan.channel_rows ? k : r;
  C* part = plan.channel_rows ? t.part + t.k0 * plan.ld + t.block * round_up_line<C>(plan.depth)
                              : t.part + t.block * plan.depth * plan.ld + t.k0;
  tiles.lda = plan.gout_in_place ? t.d->axis[2].out_stride : plan.channel_rows ? kRows : ldp;
  tiles.a_step = plan.gout_in_place ? plan.lanes : kRows * (plan.channel_rows ? pixels : ldp);
  tiles.ldb = ldp;  // interleaved only
  tiles.b_rows = t.copied;
  tiles.c_rows = t.lines;
  const std::int64_t height = plan.channel_rows ? plan.lanes : kRows;
  const auto& fn = plan.windowed       ? kTiles<C, Form::windowed>.fn
                   : plan.channel_rows ? kTiles<C, Form::interleaved>.fn
                                       : kTiles<C, Form::by_rows>.fn;
  const auto column = [&](const C* b, C* c, std::int64_t n) {
    const std::int64_t vectors = ceil_div(imin(kCols<C>, n), kLanes<C>);
    tiles.a = plan.channel_rows ? gout : t.patches;
    tiles.b = b;
    tiles.c = c;
    tiles.rows = rows / height;
    if (tiles.rows > 0) fn[height][vectors](tiles);
    if (rows % height == 0) return;
    tiles.a += tiles.rows * tiles.a_step;
    tiles.c += tiles.rows * height * plan.ld;
    tiles.rows = 1;
    fn[rows % height][vectors](tiles);
  };
  if (!plan.windowed) {
    for (std::int64_t n = 0; n < columns; n += kCols<C>)
      column(plan.channel_rows ? t.patches + n : gout + n * pixels, part + n, columns - n);
    return;
  }
  const std::int64_t* starts = t.copied + kWindowChunk;
  const std::int64_t width = plan.group_taps * t.d->red_c;
  for (std::int64_t i = b.tap0 / plan.group_taps; i < b.tap1 / plan.group_taps; ++i, part += plan.group_ld)
    for (std::int64_t n = 0; n < width; n += kCols<C>) column(t.patches + starts[i] + n, part + n, width - n);
}

// P[r][pixel] of a chunk, as many rows of the image at a time as one list takes.
template <class S, class C>
void pack_pixel_chunk(const WeightTask<C>& t, const Block& b, std::int64_t x, std::int64_t pixels,
                      std::int64_t ldp) {
  Segment panel[kMaxSegments];
  const std::int64_t most = (kMaxSegments - 1) * t.d->axis[2].out;
  for (std::int64_t i = 0; i < pixels; i += most) {
    const std::int64_t count = make_segments(*t.d, x + i, x + imin(pixels, i + most), panel);
    const std::int64_t runs = list_runs(*t.d, b, panel, count, ldp, t.runs);
    pack_pixel_panel<S, C>(*t.d, t.group, b, t.runs, runs, t.patches + i, ldp);
  }
}

// Pixels of a chunk from x that ends with its plane, or at `end`: equal ones of at most `most`.
inline std::int64_t equal_chunk(std::int64_t x, std::int64_t end, std::int64_t plane, std::int64_t most) {
  const std::int64_t left = imin(end, (x / plane + 1) * plane) - x;
  return ceil_div(left, ceil_div(left, most));
}

template <class C>
std::int64_t chunk_pixels(const WeightTask<C>& t, std::int64_t x) {
  if (!t.plan->windowed) return imin(kChunk, t.pixel1 - x);
  return equal_chunk(x, t.pixel1, t.d->axis[1].out * t.d->axis[2].out, kWindowChunk);
}

template <class C, class S>
void run_weight_task(const WeightTask<C>& t) {
  const Dense& d = *t.d;
  const WeightPlan<C>& plan = *t.plan;
  const Block b = plan.cut.block(t.block);
  for (std::int64_t x = t.pixel0, pixels; x < t.pixel1; x += pixels) {
    pixels = chunk_pixels(t, x);
    const std::int64_t count = make_segments(d, x, x + pixels, t.segments);
    const std::int64_t ldp = odd_lines<C>((plan.channel_rows ? b.depth() : pixels) + kSlack<C>);
    if (plan.windowed)
      copy_weight_window<S>(d, t.segments, count, t.patches, t.copied, t.copied + kWindowChunk);
    else if (plan.channel_rows)
      pack_channel_rows<S, C>(d, t.group, b, t.segments, count, t.patches, ldp);
    else
      pack_pixel_chunk<S>(t, b, x, pixels, ldp);
    const bool sum = t.bias_part && t.block == 0;
    for (std::int64_t k = t.k0; k < t.k1 && !plan.gout_in_place; k += plan.lanes) {
      C* panel = t.gout + (k - t.k0) / plan.lanes * plan.width * pixels;
      const std::int64_t lanes = imin(plan.lanes, t.k1 - k);
      pack_gout_panel<S, C>(d, t.group, k, lanes, plan.width, t.segments, count, panel);
      if (sum) add_bias_sums(panel, pixels, lanes, plan.width, true, t.bias_part + k);
    }
    if (plan.gout_in_place && sum)
      add_bias_sums(out_pixels(t, x), pixels, t.k1 - t.k0, d.axis[2].out_stride, false, t.bias_part + t.k0);
    weight_tiles(t, b, x, pixels, ldp);
  }
}

// gw of output channels [k0, k1) of a group.
template <class C, class D>
void write_weights(const Dense& d, const WeightPlan<C>& plan, const Parts<C>& parts, std::int64_t group,
                   std::int64_t k0, std::int64_t k1) {
  for (std::int64_t i = 0; i < plan.cut.count(); ++i) {
    const Block b = plan.cut.block(i);
    const std::int64_t channels = b.c1 - b.c0, taps = b.tap1 - b.tap0;
    D* out = static_cast<D*>(d.weight) + group * d.weight_group + b.c0 * d.weight_red;
    if (!plan.channel_rows && taps_in_one_piece(d, b) && d.weight_red == taps) {
      write_turned(parts, i * plan.depth * plan.ld + k0, plan.ld, k1 - k0, b.depth(), out + k0 * d.weight_out,
                   d.weight_out);
      continue;
    }
    for (std::int64_t t = 0; t < taps; ++t) {
      D* at = out + weight_of_tap(d, b.tap0 + t);
      if (plan.channel_rows) {
        const std::int64_t column = i * round_up_line<C>(plan.depth) + t / plan.group_taps * plan.group_ld +
                                    t % plan.group_taps * channels;
        for (std::int64_t k = k0; k < k1; ++k)
          write_row(parts, k * plan.ld + column, channels, at + k * d.weight_out, d.weight_red);
      } else {
        for (std::int64_t c = 0; c < channels; ++c)
          write_row(parts, (i * plan.depth + c * taps + t) * plan.ld + k0, k1 - k0,
                    at + c * d.weight_red + k0 * d.weight_out, d.weight_out);
      }
    }
  }
}

template <class D>
void by_weight(const Dense& d) {
  using C = compute_t<D>;
  const WeightPlan<C> plan = make_weight_plan<C>(d, std::is_same_v<C, D>);
  const std::int64_t all_out = plan.groups * d.out_c;
  const std::int64_t sums = plan.splits * plan.groups * plan.part();
  double* bias = static_cast<double*>(
      scratch_bytes(Slot::shared, plan.splits * all_out * sizeof(double) + 64 + sums * sizeof(C)));
  C* parts = reinterpret_cast<C*>(bias + ceil_div(plan.splits * all_out, 8) * 8);
  for (std::int64_t i = 0; i < plan.splits * all_out; ++i) bias[i] = 0;
  if (plan.pixels == 0) zero(parts, sums);

  parallel_for(plan.tasks(), 1, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t patches = plan.windowed ? weight_window_elements<C>(d)
                                               : imax(plan.depth * odd_lines<C>(kChunk + kSlack<C>),
                                                      kChunk * odd_lines<C>(plan.depth + kSlack<C>)) +
                                                     kCols<C>;
    const std::int64_t gout =
        (ceil_div(imin(d.out_c, kOutBlock + plan.lanes), plan.lanes) + 1) * plan.width * plan.chunk();
    WeightTask<C> t{};
    t.d = &d;
    t.plan = &plan;
    const std::int64_t taps = plan.cut.most_taps();
    t.patches = static_cast<C*>(
        scratch_bytes(Slot::local, (patches + gout + 96) * sizeof(C) + (plan.chunk() + 1) * sizeof(Segment) +
                                       3 * taps * kMaxSegments * sizeof(Run) +
                                       (plan.rows + plan.chunk() + tap_count(d)) * sizeof(std::int64_t)));
    t.gout = t.patches + round_up_line<C>(patches);
    t.segments = reinterpret_cast<Segment*>(t.gout + ceil_div(gout, 16) * 16);
    t.lines = reinterpret_cast<std::int64_t*>(t.segments + plan.chunk() + 1);
    t.copied = t.lines + plan.rows;
    t.runs = reinterpret_cast<Run*>(t.copied + plan.chunk() + tap_count(d));
    for (std::int64_t m = 0; m < plan.rows; ++m) t.lines[m] = m * plan.ld;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t split = i % plan.splits, out = i / plan.splits % plan.out_blocks;
      t.block = i / plan.splits / plan.out_blocks % plan.cut.count();
      t.group = i / plan.splits / plan.out_blocks / plan.cut.count();
      t.k0 = plan.first_out(out, d.out_c);
      t.k1 = plan.first_out(out + 1, d.out_c);
      t.pixel0 = plan.first_pixel(split);
      t.pixel1 = plan.first_pixel(split + 1);
      t.part = parts + (split * plan.groups + t.group) * plan.part();
      t.bias_part = d.bias ? bias + split * all_out + t.group * d.out_c : nullptr;
      if (t.k1 > t.k0) run_weight_task<C, D>(t);
    }
  });

  const std::int64_t panels = ceil_div(d.out_c, kCols<C>);
  parallel_for(plan.groups * panels, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t group = i / panels, k0 = i % panels * kCols<C>, k1 = imin(d.out_c, k0 + kCols<C>);
      write_weights<C, D>(d, plan, {parts + group * plan.part(), plan.splits, plan.groups * plan.part()},
                          group, k0, k1);
      if (d.bias) write_bias<D>(d, bias, plan.splits, group * d.out_c + k0, group * d.out_c + k1);
    }
  });
}

}  // namespace
}  // namespace convnorm::conv
