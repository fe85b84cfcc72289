// Implicit GEMM, forward and by input (a Dense problem, see conv.h).
//
// Two orientations of one loop nest; the side that is contiguous in the destination is the vector side of the tile:
//
//   pixels across (NCHW):    tile rows = output channels (weights, interleaved), columns = pixels   (P[k][pixel])
//   channels across (NHWC):  tile rows = pixels (P[pixel][k]), columns = output channels (weights)
//
//   pack all weights into panels                                   shared scratch, once per call
//   for task = (group, channel block, pixel block):                in parallel, by shape alone
//     for block of the sum (<= 320 deep):
//       pack the block's patches (L2)
//       for panel of columns (its 320 x 16 values stay in L1):
//         for panel of rows:  run_tile, adding to what the destination holds from the blocks before
//
// Tiles whose destination cannot be written as whole vectors (16-bit storage, ends of images, strided gradients) live in
// a buffer of the compute type until the last block and are written from there.
#pragma once

namespace convnorm::conv {
namespace {

// What a problem is cut into; a function of its shape only.
template <class C>
struct Plan {
  bool channel_rows;
  Cut cut;
  std::int64_t pixels, pixel_blocks, channel_blocks;
  std::int64_t panel;    // output channels per weight panel
  std::int64_t panels;   // of a group
  std::int64_t weights;  // packed elements of a group
  std::int64_t groups;
  std::int64_t tasks() const { return groups * channel_blocks * pixel_blocks; }

  // Channels of panel i. Interleaved panels are balanced (20 = 5+5+5+5, not 6+6+6+2): narrow tiles run slower.
  std::int64_t first_channel(std::int64_t i, std::int64_t channels) const {
    return channel_rows ? imin(channels, i * panel) : i * channels / panels;
  }
  std::int64_t first_pixel(std::int64_t i) const {
    const std::int64_t unit = channel_rows ? kRows : kCols<C>;
    return imin(pixels, ceil_div(pixels, pixel_blocks * unit) * unit * i);
  }
};

inline constexpr std::int64_t kPixelBlock = 192;    // patches of a block: 192 x 320 floats, half of an L2 of 512 KB
inline constexpr std::int64_t kWantedTasks = 8;     // small images are cut over channels too until there are so many
inline constexpr std::int64_t kLeastChannels = 96;  // but not below this: each part packs the patches again

template <class C>
Plan<C> make_plan(const Dense& d) {
  Plan<C> p{};
  p.channel_rows = d.dst_c == 1 && !(d.out_c == 1 && d.axis[2].out_stride == 1);
  p.cut = make_cut(d, p.channel_rows);
  p.groups = d.groups;
  p.pixels = d.n * d.axis[0].out * d.axis[1].out * d.axis[2].out;
  p.pixel_blocks = imax(1, ceil_div(p.pixels, kPixelBlock));
  p.panel = p.channel_rows ? kCols<C> : kRows;
  p.panels = ceil_div(d.out_c, p.panel);
  p.weights = p.panels * p.panel * tap_count(d) * d.red_c;
  const std::int64_t wanted = ceil_div(kWantedTasks, d.groups * p.pixel_blocks);
  p.channel_blocks = imin(p.panels, imax(1, imin(wanted, d.out_c / kLeastChannels)));
  return p;
}

// Scratch of a worker, carved from one allocation.
template <class C>
struct Workspace {
  C* patches;
  C* tiles;  // panel of columns j, if it is buffered, at slot[j]
  std::int64_t* offsets;
  Segment* segments;
  std::int64_t segment_count;
};

template <class C>
struct Task {
  const Dense* d;
  const Plan<C>* plan;
  const C* weights;  // of the group
  std::int64_t group, channel0, channel1, panel0, panel1, pixel0, pixels, ldp;
  Workspace<C> work;
};

template <class C>
std::int64_t round_up_line(std::int64_t n) {
  return ceil_div(n, kCols<C>) * kCols<C>;
}

// A row length of an odd number of cache lines: a column that is read row by row spreads over all sets of L1.
template <class C>
std::int64_t odd_lines(std::int64_t n) {
  constexpr std::int64_t line = 64 / sizeof(C);
  return (ceil_div(round_up_line<C>(n), line) | 1) * line;
}

// The destination of one tile: row m, column n is at rows[m] + columns[n].
template <class D>
struct Target {
  D* rows[kRows];
  const std::int64_t* columns;  // null: consecutive
  std::int64_t row_count, column_count;
};

template <class C, class D>
void flush(const C* tile, std::int64_t ld, const Target<D>& t) {
  for (std::int64_t m = 0; m < t.row_count; ++m) {
    const C* from = tile + m * ld;
    D* to = t.rows[m];
    std::int64_t n = 0;
    if (!t.columns)
      for (; n + kLanes<C> <= t.column_count; n += kLanes<C>) store(to + n, load(from + n));
    for (; n < t.column_count; ++n) store1(to + (t.columns ? t.columns[n] : n), from[n]);
  }
}

// One tile of one block: straight into the destination when it is a full tile of the same type, else by the buffer.
template <class C, class D, bool kInterleaved>
inline void compute(Tile<C>& tile, const Target<D>& target, C* buffer, bool first, bool last) {
  const std::int64_t vectors = ceil_div(target.column_count, kLanes<C>);
  const bool whole = !target.columns && target.column_count == vectors * kLanes<C>;
  const bool direct = std::is_same_v<C, D> && whole;
  for (std::int64_t m = 0; m < target.row_count; ++m)
    tile.c[m] = direct ? reinterpret_cast<C*>(target.rows[m]) : buffer + m * kCols<C>;
  if (!first) tile.start = Start::add_to_c;
  kTiles<C, kInterleaved>.fn[target.row_count][vectors](tile);
  if (last && !direct) flush(buffer, kCols<C>, target);
}

// Where a pixel panel starts, and whether its pixels follow each other in the destination.
inline const std::int64_t* column_offsets(const std::int64_t* offsets, std::int64_t count, std::int64_t* relative) {
  if (offsets[count - 1] - offsets[0] == count - 1) return nullptr;  // strides are positive: no gaps
  for (std::int64_t i = 0; i < count; ++i) relative[i] = offsets[i] - offsets[0];
  return relative;
}

template <class C, class D>
void pixels_across(const Task<C>& t, const Block& b, const C* weights, bool first, bool last) {
  const Dense& d = *t.d;
  const C* bias = static_cast<const C*>(d.bias);
  D* dst = static_cast<D*>(d.dst) + t.group * d.out_c * d.dst_c;
  const std::int64_t panels = t.panel1 - t.panel0;
  std::int64_t relative[kCols<C>];
  for (std::int64_t x = 0, j = 0; x < t.pixels; x += kCols<C>, ++j) {
    Target<D> target{};
    target.column_count = imin(kCols<C>, t.pixels - x);
    target.columns = column_offsets(t.work.offsets + x, target.column_count, relative);
    for (std::int64_t i = t.panel0; i < t.panel1; ++i) {
      const std::int64_t k0 = t.plan->first_channel(i, d.out_c);
      target.row_count = t.plan->first_channel(i + 1, d.out_c) - k0;
      for (std::int64_t m = 0; m < target.row_count; ++m)
        target.rows[m] = dst + (k0 + m) * d.dst_c + t.work.offsets[x];
      Tile<C> tile{};
      tile.depth = b.depth();
      tile.a = weights + i * kRows * b.depth();
      tile.b = t.work.patches + x;
      tile.ldb = t.ldp;
      tile.start = bias ? Start::row_bias : Start::zero;
      tile.bias = bias ? bias + t.group * d.out_c + k0 : nullptr;
      compute<C, D, true>(tile, target, t.work.tiles + (j * panels + i - t.panel0) * kRows * kCols<C>, first, last);
    }
  }
}

template <class C, class D>
void channels_across(const Task<C>& t, const Block& b, const C* weights, bool first, bool last) {
  const Dense& d = *t.d;
  const C* bias = static_cast<const C*>(d.bias);
  D* dst = static_cast<D*>(d.dst) + t.group * d.out_c;
  const std::int64_t row_panels = ceil_div(t.pixels, kRows);
  for (std::int64_t i = t.panel0; i < t.panel1; ++i) {
    const std::int64_t k0 = t.plan->first_channel(i, d.out_c);
    Target<D> target{};
    target.column_count = imin(kCols<C>, d.out_c - k0);
    for (std::int64_t x = 0, j = 0; x < t.pixels; x += kRows, ++j) {
      target.row_count = imin(kRows, t.pixels - x);
      for (std::int64_t m = 0; m < target.row_count; ++m) target.rows[m] = dst + t.work.offsets[x + m] + k0;
      Tile<C> tile{};
      tile.depth = b.depth();
      tile.a = t.work.patches + x * t.ldp;
      tile.lda = t.ldp;
      tile.b = weights + i * kCols<C> * b.depth();
      tile.ldb = kCols<C>;
      tile.start = bias ? Start::col_bias : Start::zero;
      tile.bias = bias ? bias + t.group * round_up_line<C>(d.out_c) + k0 : nullptr;
      compute<C, D, false>(tile, target, t.work.tiles + ((i - t.panel0) * row_panels + j) * kRows * kCols<C>, first,
                           last);
    }
  }
}

template <class C, class D>
void run_task(Task<C>& t) {
  const Dense& d = *t.d;
  const Plan<C>& plan = *t.plan;
  t.work.segment_count = make_segments(d, t.pixel0, t.pixel0 + t.pixels, t.work.segments);
  destination_offsets(d, t.work.segments, t.work.segment_count, t.work.offsets);
  const std::int64_t blocks = plan.cut.count();
  for (std::int64_t i = 0; i < blocks; ++i) {
    const Block b = plan.cut.block(i);
    const C* weights = t.weights + b.start * plan.panels * plan.panel;
    if (plan.channel_rows) {
      pack_channel_rows<D, C>(d, t.group, b, t.work.segments, t.work.segment_count, t.work.patches, t.ldp);
      channels_across<C, D>(t, b, weights, i == 0, i + 1 == blocks);
    } else {
      pack_pixel_rows<D, C>(d, t.group, b, t.work.segments, t.work.segment_count, t.pixels, t.work.patches, t.ldp);
      pixels_across<C, D>(t, b, weights, i == 0, i + 1 == blocks);
    }
  }
}

template <class C>
Workspace<C> make_workspace(const Plan<C>& plan, std::int64_t pixels, std::int64_t ldp, std::int64_t depth) {
  const std::int64_t patches = plan.channel_rows ? (pixels + kRows) * ldp : depth * ldp + kCols<C>;
  const std::int64_t channels = (ceil_div(plan.panels, plan.channel_blocks) + 1) * plan.panel;
  const std::int64_t tiles = channels * (round_up_line<C>(pixels) + kRows);
  const std::int64_t words = patches + tiles;
  char* memory = static_cast<char*>(scratch_bytes(
      Slot::local, words * sizeof(C) + (pixels + kCols<C>) * (sizeof(std::int64_t) + sizeof(Segment)) + 256));
  Workspace<C> w{};
  w.patches = reinterpret_cast<C*>(memory);
  w.tiles = w.patches + patches;
  w.offsets = reinterpret_cast<std::int64_t*>(memory + ceil_div(words * sizeof(C), 64) * 64);
  w.segments = reinterpret_cast<Segment*>(w.offsets + pixels + kCols<C>);
  return w;
}

// Weights of all groups, block after block, panel after panel; then the bias in the compute type, padded per group.
template <class C, class D>
const C* pack_weights(const Dense& d, const Plan<C>& plan, C* out) {
  const std::int64_t blocks = plan.cut.count();
  parallel_for(plan.groups * blocks * plan.panels, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t panel = i % plan.panels, group = i / plan.panels / blocks;
      const Block b = plan.cut.block(i / plan.panels % blocks);
      const std::int64_t k0 = plan.first_channel(panel, d.out_c);
      const std::int64_t lanes = plan.channel_rows ? imin(plan.panel, d.out_c - k0)
                                                   : plan.first_channel(panel + 1, d.out_c) - k0;
      C* to = out + group * plan.weights + (b.start * plan.panels + panel * b.depth()) * plan.panel;
      pack_weight_panel<D, C>(d, group, b, plan.channel_rows, k0, lanes, plan.panel, to);
    }
  });
  if (!d.bias) return nullptr;
  C* bias = out + plan.groups * plan.weights;
  const std::int64_t padded = plan.channel_rows ? round_up_line<C>(d.out_c) : d.out_c;
  for (std::int64_t g = 0; g < plan.groups; ++g)
    for (std::int64_t o = 0; o < padded; ++o)
      bias[g * padded + o] = o < d.out_c ? load1(static_cast<const D*>(d.bias) + g * d.out_c + o) : C(0);
  return bias;
}

template <class D>
void gemm(const Dense& problem) {
  using C = compute_t<D>;
  Dense d = problem;
  const Plan<C> plan = make_plan<C>(d);
  const std::int64_t packed = plan.groups * (plan.weights + round_up_line<C>(d.out_c));
  C* weights = static_cast<C*>(scratch_bytes(Slot::shared, packed * sizeof(C)));
  d.bias = const_cast<C*>(pack_weights<C, D>(d, plan, weights));
  const std::int64_t block_pixels = plan.first_pixel(1);
  const std::int64_t depth = imax(1, ceil_div(plan.cut.taps, plan.cut.tap_blocks)) *
                             ceil_div(plan.cut.channels, plan.cut.channel_blocks);
  const std::int64_t ldp = plan.channel_rows ? depth : odd_lines<C>(block_pixels);
  parallel_for(plan.tasks(), 1, [&](std::int64_t begin, std::int64_t end) {
    Task<C> t{};
    t.d = &d;
    t.plan = &plan;
    t.ldp = ldp;
    t.work = make_workspace<C>(plan, block_pixels, ldp, depth);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t pixel = i % plan.pixel_blocks, channel = i / plan.pixel_blocks % plan.channel_blocks;
      t.group = i / plan.pixel_blocks / plan.channel_blocks;
      t.weights = weights + t.group * plan.weights;
      t.panel0 = channel * plan.panels / plan.channel_blocks;
      t.panel1 = (channel + 1) * plan.panels / plan.channel_blocks;
      t.pixel0 = plan.first_pixel(pixel);
      t.pixels = plan.first_pixel(pixel + 1) - t.pixel0;
      if (t.pixels > 0) run_task<C, D>(t);
    }
  });
}

void run_gemm(const Dense& d) {
  dispatch(d.dtype, [&](auto tag) { gemm<decltype(tag)>(d); });
}

}  // namespace
}  // namespace convnorm::conv
