// Implicit GEMM, forward and by input (a Dense problem, see conv.h).
//
// Two orientations of one loop nest; the side that is contiguous in the destination is the vector side of the
// tile:
//
//   pixels across (NCHW):    tile rows = output channels (weights, interleaved), columns = pixels
//   (P[k][pixel]) channels across (NHWC):  tile rows = pixels (P[pixel][k], or the image in place through a
//   table of
//                            pointers), columns = output channels (weights)
//
//   pack all weights into panels                                   shared scratch, once per call
//   for task = (group, channel block, pixel block):                in parallel, by shape alone
//     for block of the sum (<= 320 deep):
//       for span of columns (320 x 16 values, which stay in L1):   pixels across: packed here, weights stream
//       from
//         run_tiles over all rows of the task                      L2; adding to what the blocks before left
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
  C *zeros, *copies;
  C* tiles;                // the buffered ones: a column of tiles after the other
  std::int64_t* offsets;   // of each pixel of the task in the destination
  std::int64_t* channels;  // of each channel of the task, from the first
  std::int64_t* lines;     // of the rows of the buffer: multiples of kCols
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
  std::int64_t ldp;       // channels across: row length of the patches
  std::int64_t buffered;  // elements of the buffer per group
  std::int64_t group;     // the current one
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

// Writes a column of buffered tiles: row m, column n goes to dst + rows[m] + columns[n], or to consecutive
// columns if that is null.
template <class C, class D>
void flush(const C* buffer, D* dst, const std::int64_t* rows, std::int64_t row_count,
           const std::int64_t* columns, std::int64_t column_count) {
  for (std::int64_t m = 0; m < row_count; ++m, buffer += kCols<C>) {
    D* to = dst + rows[m];
    std::int64_t n = 0;
    if (!columns)
      for (; n + kLanes<C> <= column_count; n += kLanes<C>) store(to + n, load(buffer + n));
    for (; n < column_count; ++n) store1(to + (columns ? columns[n] : n), buffer[n]);
  }
}

// What all tiles of a block of the sum have in common.
template <class C, Form kForm>
TileBlock<C> block_tiles(const Task<C>& t, const Block& b, bool first) {
  const std::int64_t limit = t.plan->chain;
  TileBlock<C> tiles{};
  tiles.columns = 1;
  tiles.depth = b.depth();
  const std::int64_t taps = t.plan->joined ? t.d->axis[2].taps : 1;
  tiles.runs = (b.tap1 - b.tap0) / taps;
  tiles.run = (b.c1 - b.c0) * taps;
  tiles.joined = imax(1, limit / tiles.run);
  tiles.piece = piece_length(kForm == Form::indirect ? tiles.run : tiles.depth, limit);
  tiles.start = !first                 ? Start::add_to_c
                : !t.d->bias           ? Start::zero
                : t.plan->channel_rows ? Start::col_bias
                                       : Start::row_bias;
  return tiles;
}

// All rows of the task, as tiles of equal height: `rows` tells where they lie in c.
template <class C>
void run_channel_rows(const Task<C>& t, TileBlock<C> tiles, const std::int64_t* rows, std::int64_t vectors) {
  const Plan<C>& plan = *t.plan;
  const std::int64_t taller = imin(t.panel1, imax(t.panel0, t.d->out_c % plan.panels));
  const std::int64_t height = t.d->out_c / plan.panels;
  tiles.rows = taller - t.panel0;
  tiles.c_rows = rows;
  if (tiles.rows > 0) kTiles<C, Form::interleaved>.fn[height + 1][vectors](tiles);
  tiles.c_rows += tiles.rows * (height + 1);
  tiles.bias += tiles.rows * (height + 1);
  tiles.a += tiles.rows * tiles.a_step;
  tiles.rows = t.panel1 - taller;
  if (tiles.rows > 0) kTiles<C, Form::interleaved>.fn[height][vectors](tiles);
}

template <class C, Form kForm>
void run_pixel_rows(const Task<C>& t, TileBlock<C> tiles, const std::int64_t* rows, std::int64_t vectors) {
  const std::int64_t full = t.pixels / kRows, rest = t.pixels % kRows;
  tiles.rows = full;
  tiles.c_rows = rows;
  if (full > 0) kTiles<C, kForm>.fn[kRows][vectors](tiles);
  if (rest == 0) return;
  tiles.rows = 1;
  tiles.c_rows += full * kRows;
  tiles.a += full * tiles.a_step;
  tiles.table += full * kRows * tiles.runs;
  kTiles<C, kForm>.fn[rest][vectors](tiles);
}

// Whether n columns follow each other in the destination (strides are positive: no gaps).
inline bool consecutive(const std::int64_t* offsets, std::int64_t n) {
  return offsets[n - 1] - offsets[0] == n - 1;
}

// Pixels from x that can be written as whole vectors, in full columns of tiles or one narrower column; 0 if
// the next column must be buffered.
template <class C, class D>
std::int64_t direct_pixels(const std::int64_t* offsets, std::int64_t n) {
  if constexpr (!std::is_same_v<C, D>) return 0;
  std::int64_t full = 0;
  while (full + kCols<C> <= n && consecutive(offsets, full + kCols<C>)) full += kCols<C>;
  if (full > 0) return full;
  return n < kCols<C> && n % kLanes<C> == 0 && consecutive(offsets, n) ? n : 0;
}

// The pixels [x, x + n) of one direct stretch or one buffered column of tiles, all channels of the task.
template <class C, class D>
void pixel_columns(const Task<C>& t, TileBlock<C> tiles, std::int64_t x, std::int64_t n, bool direct,
                   bool last) {
  const Dense& d = *t.d;
  const std::int64_t k0 = t.plan->first_channel(t.panel0, d.out_c);
  const std::int64_t channels = t.plan->first_channel(t.panel1, d.out_c) - k0;
  const std::int64_t* offsets = t.work.offsets + x;
  D* dst = static_cast<D*>(d.dst) + (t.group * d.out_c + k0) * d.dst_c + offsets[0];
  const std::int64_t vectors = ceil_div(imin(n, kCols<C>), kLanes<C>);
  if (direct) {
    tiles.columns = ceil_div(n, kCols<C>);
    tiles.c = reinterpret_cast<C*>(dst);
    return run_channel_rows(t, tiles, t.work.channels, vectors);
  }
  tiles.c = t.work.tiles + x * channels;
  run_channel_rows(t, tiles, t.work.lines, vectors);
  if (!last) return;
  std::int64_t relative[kCols<C>];
  for (std::int64_t i = 0; i < n; ++i) relative[i] = offsets[i] - offsets[0];
  flush(tiles.c, dst, t.work.channels, channels, consecutive(offsets, n) ? nullptr : relative, n);
}

// Packs the patches of the pixels [x, end) of the task.
template <class C, class D>
void bring_span(const Task<C>& t, const Block& b, std::int64_t x, std::int64_t end) {
  const Dense& d = *t.d;
  Segment segments[kMaxSegments];
  const std::int64_t count = make_segments(d, t.pixel0 + x, t.pixel0 + end, segments);
  const std::int64_t runs = list_runs(d, b, segments, count, t.plan->span, t.work.runs);
  pack_pixel_panel<D, C>(d, t.group, b, t.work.runs, runs, t.work.patches, t.plan->span);
}

template <class C, class D>
void pixels_across(const Task<C>& t, const Block& b, const C* weights, std::int64_t begin, std::int64_t end,
                   bool first, bool last) {
  const Dense& d = *t.d;
  const C* bias = static_cast<const C*>(d.bias);
  const std::int64_t k0 = t.plan->first_channel(t.panel0, d.out_c), span = t.plan->span;
  TileBlock<C> tiles = block_tiles<C, Form::interleaved>(t, b, first);
  tiles.a = weights + t.panel0 * kRows * b.depth();
  tiles.a_step = kRows * b.depth();
  tiles.ldb = span;
  tiles.b_step = tiles.c_step = kCols<C>;
  if (bias) tiles.bias = bias + t.group * d.out_c + k0;
  for (std::int64_t x0 = begin; x0 < end; x0 += span) {
    const std::int64_t x1 = imin(end, x0 + span);
    bring_span<C, D>(t, b, x0, x1);
    for (std::int64_t x = x0; x < x1;) {
      const std::int64_t direct = direct_pixels<C, D>(t.work.offsets + x, x1 - x);
      const std::int64_t n = direct > 0 ? direct : imin(kCols<C>, x1 - x);
      tiles.b = t.work.patches + (x - x0);
      pixel_columns<C, D>(t, tiles, x, n, direct > 0, last);
      x += n;
    }
  }
}

// The first pixel of the task, in the source.
template <class C>
const C* rows_in_place(const Task<C>& t, const Block& b) {
  const Dense& d = *t.d;
  return static_cast<const C*>(d.src) + t.group * d.red_c + b.c0 + t.pixel0 * d.axis[2].source_stride;
}

template <class C, class D, Form kForm>
void channels_across(const Task<C>& t, const Block& b, const C* weights, bool first, bool last) {
  const Dense& d = *t.d;
  const C* bias = static_cast<const C*>(d.bias);
  TileBlock<C> tiles = block_tiles<C, kForm>(t, b, first);
  tiles.a = t.plan->in_place ? rows_in_place<C>(t, b) : t.work.patches;
  tiles.lda = t.plan->in_place ? d.axis[2].source_stride : t.ldp;
  tiles.a_step = kRows * tiles.lda;
  tiles.table = t.work.table;
  tiles.skip = (t.group - t.group0) * d.red_c;
  tiles.ldb = tiles.c_step = kCols<C>;
  tiles.b_step = kCols<C> * b.depth();
  C* buffer = t.work.tiles + (t.group - t.group0) * t.buffered;
  for (std::int64_t i = t.panel0; i < t.panel1;) {
    const std::int64_t k0 = t.plan->first_channel(i, d.out_c), channels = d.out_c - k0;
    const std::int64_t lanes = imin(kCols<C>, channels), full = imin(t.panel1 - i, channels / kCols<C>);
    const bool direct = std::is_same_v<C, D> && lanes % kLanes<C> == 0;
    D* dst = static_cast<D*>(d.dst) + t.group * d.out_c + k0;
    tiles.columns = direct && full > 1 && t.plan->weights_in_l2(b) ? full : 1;
    tiles.b = weights + i * kCols<C> * b.depth();
    if (bias) tiles.bias = bias + t.group * round_up_line<C>(d.out_c) + k0;
    tiles.c = direct ? reinterpret_cast<C*>(dst) : buffer;
    run_pixel_rows<C, kForm>(t, tiles, direct ? t.work.offsets : t.work.lines, ceil_div(lanes, kLanes<C>));
    if (last && !direct) flush(buffer, dst, t.work.offsets, t.pixels, nullptr, lanes);
    i += tiles.columns;
    buffer += tiles.columns * t.pixels * kCols<C>;
  }
}

template <class C>
const C* block_weights(const Task<C>& t, const Block& b) {
  return t.weights + t.group * t.plan->weights + b.start * t.plan->panels * t.plan->panel;
}

// Weights that fit L2 are gone through for every span, so that what is written stays in L1; others block by
// block.
template <class C, class D>
void run_pixels_across(Task<C>& t) {
  const Plan<C>& plan = *t.plan;
  const std::int64_t blocks = plan.cut.count(), step = plan.weights_in_l2() ? plan.span : t.pixels;
  for (t.group = t.group0; t.group < t.group1; ++t.group)
    for (std::int64_t x = 0; x < t.pixels; x += step)
      for (std::int64_t i = 0; i < blocks; ++i) {
        const Block b = plan.cut.block(i);
        pixels_across<C, D>(t, b, block_weights(t, b), x, imin(t.pixels, x + step), i == 0, i + 1 == blocks);
      }
}

template <class C, class D>
void run_channels_across(Task<C>& t) {
  const Dense& d = *t.d;
  const Plan<C>& plan = *t.plan;
  const std::int64_t blocks = plan.cut.count();
  for (std::int64_t i = 0; i < blocks; ++i) {
    const Block b = plan.cut.block(i);
    const bool first = i == 0, last = i + 1 == blocks;
    if constexpr (std::is_same_v<C, D>)
      if (plan.indirect)
        point_channel_rows<C>(d, t.group0, b, t.work.segments, t.work.segment_count,
                              {t.work.table, t.work.zeros, t.work.copies, plan.joined});
    for (t.group = t.group0; t.group < t.group1; ++t.group) {
      const C* weights = block_weights(t, b);
      if (plan.indirect) {
        channels_across<C, D, Form::indirect>(t, b, weights, first, last);
        continue;
      }
      if (!plan.in_place)
        pack_channel_rows<D, C>(d, t.group, b, t.work.segments, t.work.segment_count, t.work.patches, t.ldp);
      channels_across<C, D, Form::by_rows>(t, b, weights, first, last);
    }
  }
}

template <class C, class D>
void run_task(Task<C>& t) {
  const Dense& d = *t.d;
  t.work.segment_count = make_segments(d, t.pixel0, t.pixel0 + t.pixels, t.work.segments);
  destination_offsets(d, t.work.segments, t.work.segment_count, t.work.offsets);
  if (t.plan->channel_rows) return run_channels_across<C, D>(t);
  for (std::int64_t k = 0; k < (t.panel1 - t.panel0) * kRows; ++k) t.work.channels[k] = k * d.dst_c;
  run_pixels_across<C, D>(t);
}

// Buffer for every tile of a task, per group.
template <class C>
std::int64_t tile_elements(const Plan<C>& plan, std::int64_t pixels) {
  return ceil_div(plan.panels, plan.channel_blocks) * plan.panel * round_up_line<C>(pixels);
}

template <class C>
Workspace<C> make_workspace(const Plan<C>& plan, std::int64_t pixels, std::int64_t depth) {
  const std::int64_t rows = ceil_div(pixels, kRows) * kRows;
  const std::int64_t max_taps = ceil_div(plan.cut.taps, plan.cut.tap_blocks);
  const std::int64_t zeros = plan.joined ? depth : plan.indirect ? plan.group_span * plan.cut.channels : 0;
  const std::int64_t copies = plan.joined ? pixels * (depth + kSlack<C>) : 0;
  const std::int64_t channels = plan.channel_rows ? 0 : ceil_div(plan.panels, plan.channel_blocks) * kRows;
  const std::int64_t lines = plan.channel_rows ? rows : channels;
  const std::int64_t patches = plan.indirect       ? rows * max_taps * sizeof(const C*)
                               : plan.channel_rows ? rows * (depth + kSlack<C>)*sizeof(C)
                                                   : (depth * plan.span + kSlack<C>)*sizeof(C);
  const std::int64_t size[9] = {
      patches,
      std::int64_t(zeros * sizeof(C)),
      std::int64_t(plan.group_span * tile_elements(plan, pixels) * sizeof(C)),
      std::int64_t(pixels * sizeof(std::int64_t)),
      std::int64_t(channels * sizeof(std::int64_t)),
      std::int64_t(lines * sizeof(std::int64_t)),
      std::int64_t((pixels + 1) * sizeof(Segment)),
      std::int64_t(plan.channel_rows ? 0 : 3 * max_taps * kMaxSegments * sizeof(Run)),
      std::int64_t(copies * sizeof(C))};
  std::int64_t at[10] = {0};  // each part on its own cache line
  for (int i = 0; i < 9; ++i) at[i + 1] = at[i] + ceil_div(size[i], 64) * 64;
  char* memory = static_cast<char*>(scratch_bytes(Slot::local, at[9]));
  Workspace<C> w{};
  w.patches = reinterpret_cast<C*>(memory);
  w.table = reinterpret_cast<const C**>(memory);
  w.zeros = reinterpret_cast<C*>(memory + at[1]);
  w.tiles = reinterpret_cast<C*>(memory + at[2]);
  w.offsets = reinterpret_cast<std::int64_t*>(memory + at[3]);
  w.channels = reinterpret_cast<std::int64_t*>(memory + at[4]);
  w.lines = reinterpret_cast<std::int64_t*>(memory + at[5]);
  w.segments = reinterpret_cast<Segment*>(memory + at[6]);
  w.runs = reinterpret_cast<Run*>(memory + at[7]);
  w.copies = reinterpret_cast<C*>(memory + at[8]);
  zero(w.zeros, zeros);
  for (std::int64_t m = 0; m < lines; ++m) w.lines[m] = m * kCols<C>;
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
    t.buffered = tile_elements(plan, block_pixels);
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
