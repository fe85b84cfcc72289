// Implicit GEMM, forward and by input (a Dense problem, see conv.h).
//
// Two orientations of one loop nest; the side that is contiguous in the destination is the vector side of the
// tile:
//
//   pixels across (NCHW):    tile rows = output channels (weights, interleaved), columns = pixels
//   (P[k][pixel]) channels across (NHWC):  tile rows = pixels (P[pixel][k], or the image in place through a
//   table of pointers),
//                            columns = output channels (weights)
//
//   pack all weights into panels                                   shared scratch, once per call
//   for task = (group, channel block, pixel block):                in parallel, by shape alone
//     for block of the sum (<= 320 deep):
//       for panel of columns (its 320 x 16 values stay in L1):     pixels across: packed here, weights stream
//       from L2
//         for panel of rows:  run_tile, adding to what the destination holds from the blocks before
//
// Tiles whose destination cannot be written as whole vectors (16-bit storage, ends of images, strided
// gradients) live in a buffer of the compute type until the last block and are written from there.
#pragma once

namespace convnorm::conv {
namespace {

// Scratch of a worker, carved from one allocation.
template <class C>
struct Workspace {
  C* patches;
  const C** table;  // indirect: in place of patches
  C* zeros;
  C* tiles;  // panel of columns j, if it is buffered, at slot[j]
  std::int64_t* offsets;
  Run* runs;
  Segment* segments;
  std::int64_t segment_count;
};

template <class C>
struct Task {
  const Dense* d;
  const Plan<C>* plan;
  const C* weights;
  std::int64_t group0, group1, panel0, panel1, pixel0, pixels;
  std::int64_t ldp, tiles_per_group;
  std::int64_t group;  // the current one
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

// Writes a buffered tile: row m, column n goes to rows[m] + columns[n], or to consecutive columns if that is
// null.
template <class C, class D>
void flush(const C* tile, D* const* rows, std::int64_t row_count, const std::int64_t* columns,
           std::int64_t column_count) {
  for (std::int64_t m = 0; m < row_count; ++m) {
    const C* from = tile + m * kCols<C>;
    std::int64_t n = 0;
    if (!columns)
      for (; n + kLanes<C> <= column_count; n += kLanes<C>) store(rows[m] + n, load(from + n));
    for (; n < column_count; ++n) store1(rows[m] + (columns ? columns[n] : n), from[n]);
  }
}

// The tiles of one panel of columns in one block: straight into the destination where its columns are whole
// vectors of the compute type, else by the buffer.
template <class C, class D, Form kForm>
struct Column {
  Tile<C> tile;
  D* rows[kRows];
  const std::int64_t* columns;
  std::int64_t column_count, vectors;
  bool direct, last;

  Column(const Block& b, std::int64_t count, const std::int64_t* offsets, bool first, bool is_last)
      : columns(offsets), column_count(count), vectors(ceil_div(count, kLanes<C>)), last(is_last) {
    direct = std::is_same_v<C, D> && !columns && count == vectors * kLanes<C>;
    tile.depth = b.depth();
    tile.piece = piece_length(kForm == Form::indirect ? b.c1 - b.c0 : b.depth());
    tile.start = first ? Start::zero : Start::add_to_c;
  }
  void run(std::int64_t row_count, C* buffer) {
    for (std::int64_t m = 0; m < row_count; ++m)
      tile.c[m] = direct ? reinterpret_cast<C*>(rows[m]) : buffer + m * kCols<C>;
    kTiles<C, kForm>.fn[row_count][vectors](tile);
    if (last && !direct) flush(buffer, rows, row_count, columns, column_count);
  }
};

// Where the pixels of a panel lie from its first one; null when they follow each other in the destination.
inline const std::int64_t* column_offsets(const std::int64_t* offsets, std::int64_t count,
                                          std::int64_t* relative) {
  if (offsets[count - 1] - offsets[0] == count - 1) return nullptr;  // strides are positive: no gaps
  for (std::int64_t i = 0; i < count; ++i) relative[i] = offsets[i] - offsets[0];
  return relative;
}

// Pixels [x, x + kCols) of the task as segments that start at 0.
template <class C>
std::int64_t panel_segments(const Task<C>& t, std::int64_t x, Segment* out) {
  return x < t.pixels ? make_segments(*t.d, t.pixel0 + x, t.pixel0 + imin(t.pixels, x + kCols<C>), out) : 0;
}

// Points the tile at the patches of the panel at x, packed now or with the first panel of the task.
template <class C, class D>
void bring_panel(const Task<C>& t, const Block& b, std::int64_t x, Tile<C>& tile) {
  const Dense& d = *t.d;
  const bool at_once = t.plan->at_once;
  tile.b = at_once ? t.work.patches + x : t.work.patches;
  tile.ldb = at_once ? odd_lines<C>(t.pixels + kSlack<C>) : kCols<C>;
  if (at_once && x > 0) return;
  Segment segments[kCols<C>];
  const Segment* now = at_once ? t.work.segments : segments;
  const std::int64_t count = at_once ? t.work.segment_count : panel_segments(t, x, segments);
  const std::int64_t runs = list_runs(d, b, now, count, tile.ldb, t.work.runs);
  pack_pixel_panel<D, C>(d, t.group, b, t.work.runs, runs, t.work.patches, tile.ldb);
  if (t.plan->cut.taps == 1)
    prefetch_panel<D>(d, t.group, b, segments, panel_segments(t, x + kCols<C>, segments));
}

// Rows of pixels read in place: all panels of a task under one panel of weights, so that the few rows of the
// destination being written stay in the TLB; the source block is read from L2.
template <class C>
void pixels_in_place(const Task<C>& t, const Block& b, const C* weights, bool first, bool last) {
  const Dense& d = *t.d;
  const C* bias = static_cast<const C*>(d.bias);
  C* dst = static_cast<C*>(d.dst) + t.group * d.out_c * d.dst_c;
  C* buffer = t.work.tiles;
  for (std::int64_t i = t.panel0; i < t.panel1; ++i) {
    const std::int64_t k0 = t.plan->first_channel(i, d.out_c), k1 = t.plan->first_channel(i + 1, d.out_c);
    for (std::int64_t x = 0; x < t.pixels; x += kCols<C>, buffer += kRows * kCols<C>) {
      Column<C, C, Form::interleaved> column(b, kCols<C>, nullptr, first, last);
      if (first && bias) column.tile.start = Start::row_bias;
      const std::int64_t image = (t.pixel0 + x) / d.axis[2].out, w = (t.pixel0 + x) % d.axis[2].out;
      column.tile.b =
          static_cast<const C*>(d.src) + (t.group * d.red_c + b.c0) * d.src_c + image * d.src_n + w;
      column.tile.ldb = d.src_c;
      for (std::int64_t m = 0; m < k1 - k0; ++m)
        column.rows[m] = dst + (k0 + m) * d.dst_c + t.work.offsets[x];
      column.tile.a = weights + i * kRows * b.depth();
      if (bias) column.tile.bias = bias + t.group * d.out_c + k0;
      column.run(k1 - k0, buffer);
    }
  }
}

template <class C, class D>
void pixels_across(const Task<C>& t, const Block& b, const C* weights, bool first, bool last) {
  const Dense& d = *t.d;
  const C* bias = static_cast<const C*>(d.bias);
  D* dst = static_cast<D*>(d.dst) + t.group * d.out_c * d.dst_c;
  std::int64_t relative[kCols<C>];
  C* buffer = t.work.tiles;
  for (std::int64_t x = 0; x < t.pixels; x += kCols<C>) {
    const std::int64_t count = imin(kCols<C>, t.pixels - x);
    Column<C, D, Form::interleaved> column(b, count, column_offsets(t.work.offsets + x, count, relative),
                                           first, last);
    if (first && bias) column.tile.start = Start::row_bias;
    bring_panel<C, D>(t, b, x, column.tile);
    std::int64_t k0 = t.plan->first_channel(t.panel0, d.out_c);
    for (std::int64_t i = t.panel0; i < t.panel1; ++i, buffer += kRows * kCols<C>) {
      const std::int64_t k1 = t.plan->first_channel(i + 1, d.out_c);
      for (std::int64_t m = 0; m < k1 - k0; ++m)
        column.rows[m] = dst + (k0 + m) * d.dst_c + t.work.offsets[x];
      column.tile.a = weights + i * kRows * b.depth();
      if (bias) column.tile.bias = bias + t.group * d.out_c + k0;
      column.run(k1 - k0, buffer);
      k0 = k1;
    }
  }
}

template <class C, class D, Form kForm>
void channels_across(const Task<C>& t, const Block& b, const C* weights, bool first, bool last) {
  const Dense& d = *t.d;
  const C* bias = static_cast<const C*>(d.bias);
  D* dst = static_cast<D*>(d.dst) + t.group * d.out_c;
  C* buffer = t.work.tiles + (t.group - t.group0) * t.tiles_per_group;
  for (std::int64_t i = t.panel0; i < t.panel1; ++i) {
    const std::int64_t k0 = t.plan->first_channel(i, d.out_c);
    Column<C, D, kForm> column(b, imin(kCols<C>, d.out_c - k0), nullptr, first, last);
    column.tile.b = weights + i * kCols<C> * b.depth();
    column.tile.ldb = kCols<C>;
    column.tile.lda = t.ldp;
    column.tile.run = b.c1 - b.c0;
    column.tile.skip = (t.group - t.group0) * d.red_c;
    if (first && bias) column.tile.start = Start::col_bias;
    if (bias) column.tile.bias = bias + t.group * round_up_line<C>(d.out_c) + k0;
    for (std::int64_t x = 0; x < t.pixels; x += kRows, buffer += kRows * kCols<C>) {
      const std::int64_t rows = imin(kRows, t.pixels - x);
      for (std::int64_t m = 0; m < rows; ++m) column.rows[m] = dst + t.work.offsets[x + m] + k0;
      column.tile.a = t.work.patches + x * t.ldp;
      column.tile.rows = t.work.table + x * (b.tap1 - b.tap0);
      column.run(rows, buffer);
    }
  }
}

template <class C, class D>
void run_group(const Task<C>& t, const Block& b, const C* weights, bool first, bool last) {
  if (t.plan->indirect) {
    channels_across<C, D, Form::indirect>(t, b, weights, first, last);
  } else if (t.plan->channel_rows) {
    pack_channel_rows<D, C>(*t.d, t.group, b, t.work.segments, t.work.segment_count, t.work.patches, t.ldp);
    channels_across<C, D, Form::by_rows>(t, b, weights, first, last);
  } else {
    if constexpr (std::is_same_v<C, D>)
      if (t.plan->in_place) return pixels_in_place<C>(t, b, weights, first, last);
    pixels_across<C, D>(t, b, weights, first, last);
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
    if constexpr (std::is_same_v<C, D>)
      if (plan.indirect)
        point_channel_rows<C>(d, t.group0, b, t.work.segments, t.work.segment_count, t.work.zeros,
                              t.work.table);
    for (t.group = t.group0; t.group < t.group1; ++t.group)
      run_group<C, D>(t, b, t.weights + t.group * plan.weights + b.start * plan.panels * plan.panel, i == 0,
                      i + 1 == blocks);
  }
}

// Buffer for every tile of a task, per group.
template <class C>
std::int64_t tile_elements(const Plan<C>& plan, std::int64_t pixels) {
  const std::int64_t channels = (ceil_div(plan.panels, plan.channel_blocks) + 1) * plan.panel;
  return channels * (round_up_line<C>(pixels) + kRows);
}

template <class C>
Workspace<C> make_workspace(const Plan<C>& plan, std::int64_t pixels, std::int64_t depth) {
  const std::int64_t rows = ceil_div(pixels, kRows) * kRows;
  const std::int64_t max_taps = ceil_div(plan.cut.taps, plan.cut.tap_blocks);
  const std::int64_t run = plan.indirect ? plan.group_span * plan.cut.channels : 0;
  const std::int64_t row = plan.at_once ? odd_lines<C>(pixels + kSlack<C>) : kCols<C>;
  const std::int64_t patches = plan.indirect       ? rows * max_taps * sizeof(const C*)
                               : plan.channel_rows ? rows * (depth + kSlack<C>)*sizeof(C)
                                                   : (depth * row + kSlack<C>)*sizeof(C);
  const std::int64_t tiles = plan.group_span * tile_elements(plan, pixels) * sizeof(C);
  std::int64_t at[7] = {
      0};  // patches or table, zeros, tiles, offsets, segments, runs, end; each on its own cache line
  const std::int64_t size[6] = {
      patches,
      std::int64_t(run * sizeof(C)),
      tiles,
      std::int64_t((pixels + kCols<C>)*sizeof(std::int64_t)),
      std::int64_t((pixels + 1) * sizeof(Segment)),
      std::int64_t(plan.channel_rows ? 0 : 3 * max_taps * kMaxSegments * sizeof(Run))};
  for (int i = 0; i < 6; ++i) at[i + 1] = at[i] + ceil_div(size[i], 64) * 64;
  char* memory = static_cast<char*>(scratch_bytes(Slot::local, at[6]));
  Workspace<C> w{};
  w.patches = reinterpret_cast<C*>(memory);
  w.table = reinterpret_cast<const C**>(memory);
  w.zeros = reinterpret_cast<C*>(memory + at[1]);
  w.tiles = reinterpret_cast<C*>(memory + at[2]);
  w.offsets = reinterpret_cast<std::int64_t*>(memory + at[3]);
  w.segments = reinterpret_cast<Segment*>(memory + at[4]);
  w.runs = reinterpret_cast<Run*>(memory + at[5]);
  zero(w.zeros, run);
  return w;
}

// Weights of all groups, block after block, panel after panel; then the bias in the compute type, padded per
// group.
template <class C, class D>
const C* pack_weights(const Dense& d, const Plan<C>& plan, C* out) {
  const std::int64_t blocks = plan.cut.count();
  parallel_for(plan.groups * blocks * plan.panels, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t panel = i % plan.panels, group = i / plan.panels / blocks;
      const Block b = plan.cut.block(i / plan.panels % blocks);
      const std::int64_t k0 = plan.first_channel(panel, d.out_c);
      const std::int64_t lanes =
          plan.channel_rows ? imin(plan.panel, d.out_c - k0) : plan.first_channel(panel + 1, d.out_c) - k0;
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
  const Plan<C> plan = make_plan<C>(d, std::is_same_v<C, D>);
  const std::int64_t packed = plan.groups * (plan.weights + round_up_line<C>(d.out_c));
  C* weights = static_cast<C*>(scratch_bytes(Slot::shared, packed * sizeof(C)));
  d.bias = const_cast<C*>(pack_weights<C, D>(d, plan, weights));
  const std::int64_t block_pixels = plan.first_pixel(1);
  const std::int64_t depth = imax(1, ceil_div(plan.cut.taps, plan.cut.tap_blocks)) *
                             ceil_div(plan.cut.channels, plan.cut.channel_blocks);
  parallel_for(plan.tasks(), 1, [&](std::int64_t begin, std::int64_t end) {
    Task<C> t{};
    t.d = &d;
    t.plan = &plan;
    t.weights = weights;
    t.ldp = depth + kSlack<C>;
    t.tiles_per_group = tile_elements(plan, block_pixels);
    t.work = make_workspace<C>(plan, block_pixels, depth);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t pixel = i % plan.pixel_blocks, channel = i / plan.pixel_blocks % plan.channel_blocks;
      t.group0 = i / plan.pixel_blocks / plan.channel_blocks * plan.group_span;
      t.group1 = imin(plan.groups, t.group0 + plan.group_span);
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
