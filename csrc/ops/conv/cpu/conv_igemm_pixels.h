// Implicit GEMM, pixels across (NCHW): tile rows are output channels, columns are pixels, from packed patches
// or from the rows of a padded copy (conv_igemm_window.h).
//
// Include after conv_igemm_task.h.
#pragma once

namespace convnorm::conv {
namespace {

// All rows of the task, as tiles of equal height: `rows` tells where they lie in c.
template <class C, Form kForm>
void run_channel_rows(const Task<C>& t, TileBlock<C>& tiles, const std::int64_t* rows, std::int64_t vectors) {
  const Plan<C>& plan = *t.plan;
  const C *const a = tiles.a, *const bias = tiles.bias;
  const std::int64_t taller = imin(t.panel1, imax(t.panel0, t.d->out_c % plan.panels));
  const std::int64_t height = t.d->out_c / plan.panels;
  tiles.rows = taller - t.panel0;
  tiles.c_rows = rows;
  if (tiles.rows > 0) kTiles<C, kForm>.fn[height + 1][vectors](tiles);
  tiles.c_rows += tiles.rows * (height + 1);
  tiles.bias += tiles.rows * (height + 1);
  tiles.a += tiles.rows * tiles.a_step;
  tiles.rows = t.panel1 - taller;
  if (tiles.rows > 0) kTiles<C, kForm>.fn[height][vectors](tiles);
  tiles.a = a;
  tiles.bias = bias;
}

template <class C>
std::int64_t task_channels(const Task<C>& t) {
  return t.plan->first_channel(t.panel1, t.d->out_c) - t.plan->first_channel(t.panel0, t.d->out_c);
}

// What all tiles of a block have in common when their rows are channels.
template <class C, Form kForm>
TileBlock<C> channel_tiles(const Task<C>& t, const Block& b, const C* weights, bool first) {
  const Dense& d = *t.d;
  TileBlock<C> tiles = block_tiles<C, kForm>(t, b, first);
  tiles.a = weights + t.panel0 * kRows * b.depth();
  tiles.lda = kRows;
  tiles.a_step = kRows * b.depth();
  tiles.b_step = tiles.c_step = kCols<C>;
  if (d.bias)
    tiles.bias = static_cast<const C*>(d.bias) + t.group * d.out_c + t.plan->first_channel(t.panel0, d.out_c);
  return tiles;
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

// The pixels [x, x + n) of one direct stretch, or of one column of tiles in a buffer, all channels of the
// task.
template <class C, class D, Form kForm>
void pixel_columns(const Task<C>& t, TileBlock<C>& tiles, std::int64_t x, std::int64_t n, C* buffer,
                   bool last) {
  const Dense& d = *t.d;
  const std::int64_t k0 = t.plan->first_channel(t.panel0, d.out_c), channels = task_channels(t);
  const std::int64_t* offsets = t.work.offsets + x;
  D* dst = static_cast<D*>(d.dst) + (t.group * d.out_c + k0) * d.dst_c + offsets[0];
  const std::int64_t vectors = ceil_div(imin(n, kCols<C>), kLanes<C>);
  if (!buffer) {
    tiles.columns = ceil_div(n, kCols<C>);
    write_direct(t, tiles, dst, n, last);
    return run_channel_rows<C, kForm>(t, tiles, t.work.channels, vectors);
  }
  tiles.columns = 1;
  write_buffered(tiles, buffer);
  run_channel_rows<C, kForm>(t, tiles, t.work.lines, vectors);
  if (!last) return;
  std::int64_t relative[kCols<C>];
  for (std::int64_t i = 0; i < n; ++i) relative[i] = offsets[i] - offsets[0];
  flush(d, tiles.c, dst, t.work.channels, channels, consecutive(offsets, n) ? nullptr : relative, n);
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

// Where the source has the pixels from x of the task, for a block of a plan that reads rows in place.
template <class C>
const C* source_pixels(const Task<C>& t, const Block& b, std::int64_t x) {
  const Dense& d = *t.d;
  Segment at;
  make_segments(d, t.pixel0 + x, t.pixel0 + x + 1, &at);
  return static_cast<const C*>(d.src) + (t.group * d.red_c + b.c0) * d.src_c + source_row(d, at, {0, 0, 0}) +
         at.w;
}

// Tells a block's tiles what is read after the pixels [x, end): the next block's rows of them, where the
// blocks take turns, else the next pixels, also those of the next task.
template <class C>
void look_ahead(const Task<C>& t, TileBlock<C>& tiles, std::int64_t i, std::int64_t x, std::int64_t end) {
  const Plan<C>& plan = *t.plan;
  const bool turns = plan.by_span(), same = turns && i + 1 < plan.cut.count();
  const std::int64_t next = same ? x : end, n = imin(end - x, plan.pixels - t.pixel0 - next);
  tiles.ahead_ld = t.d->src_c;
  tiles.ahead_lines = plan.pixel_rows && n > 0 ? ceil_div(n * std::int64_t(sizeof(C)), 64) : 0;
  if (tiles.ahead_lines > 0)
    tiles.ahead = source_pixels(t, plan.cut.block(same ? i + 1 : turns ? 0 : i), next);
}

// The pixels [begin, end) of the task, under block i of the sum.
template <class C, class D>
void pixels_across(const Task<C>& t, std::int64_t i, std::int64_t begin, std::int64_t end) {
  const Dense& d = *t.d;
  const Block b = t.plan->cut.block(i);
  const bool last = i + 1 == t.plan->cut.count();
  const std::int64_t span = t.plan->span, channels = task_channels(t);
  TileBlock<C> tiles = channel_tiles<C, Form::interleaved>(t, b, block_weights(t, b), i == 0);
  for (std::int64_t x0 = begin; x0 < end; x0 += span) {
    const std::int64_t x1 = imin(end, x0 + span);
    look_ahead(t, tiles, i, x0, x1);
    bool packed = false;
    for (std::int64_t x = x0; x < x1;) {
      const std::int64_t direct = direct_pixels<C, D>(t.work.offsets + x, x1 - x);
      const std::int64_t n = direct > 0 ? direct : imin(kCols<C>, x1 - x);
      const bool in_place = t.plan->source_rows && direct > 0;
      if (!in_place && !packed) bring_span<C, D>(t, b, x0, x1), packed = true;
      tiles.b = in_place ? source_pixels(t, b, x) : t.work.patches + (x - x0);
      tiles.ldb = in_place ? d.src_c : span;
      C* buffer = direct > 0 ? nullptr : t.work.tiles + x * channels;
      pixel_columns<C, D, Form::interleaved>(t, tiles, x, n, buffer, last);
      tiles.ahead_lines = 0;
      x += n;
    }
  }
}

// All pixels of a task under block i, whose rows are read from a padded copy, a row of outputs at a time.
template <class C, class D>
void windows_across(const Task<C>& t, std::int64_t i) {
  const Dense& d = *t.d;
  const Block b = t.plan->cut.block(i);
  const bool last = i + 1 == t.plan->cut.count();
  const Segment& at = t.work.segments[0];
  const std::int64_t width = at.len, lines = t.pixels / width, channels = task_channels(t);
  const WindowShape shape = window_shape(d, lines, width);
  window_rows(d, b, shape, t.work.window);
  copy_window<D>(d, t.group, b, shape, at, t.work.patches);
  TileBlock<C> tiles = channel_tiles<C, Form::windowed>(t, b, block_weights(t, b), i == 0);
  tiles.b_rows = t.work.window;
  const bool rows_fit = std::is_same_v<C, D> && !t.plan->turned;
  const std::int64_t whole = rows_fit ? width / kCols<C> * kCols<C> : 0;
  C* buffer = t.work.tiles;
  for (std::int64_t y = 0; y < lines; ++y) {
    const C* row = t.work.patches + y * d.axis[1].step * shape.pitch;
    tiles.b = row;
    if (whole > 0) pixel_columns<C, D, Form::windowed>(t, tiles, y * width, whole, nullptr, last);
    for (std::int64_t x = whole; x < width; x += kCols<C>, buffer += kCols<C> * channels) {
      const std::int64_t n = imin(kCols<C>, width - x);
      tiles.b = row + x;
      const bool direct = rows_fit && n % kLanes<C> == 0;
      pixel_columns<C, D, Form::windowed>(t, tiles, y * width + x, n, direct ? nullptr : buffer, last);
    }
  }
}

// Weights that fit L2 are gone through for every span, so that what is written stays in L1; others block by
// block.
template <class C, class D>
void run_pixels_across(Task<C>& t) {
  const Plan<C>& plan = *t.plan;
  const std::int64_t blocks = plan.cut.count(), step = plan.by_span() ? plan.span : t.pixels;
  for (t.group = t.group0; t.group < t.group1; ++t.group)
    for (std::int64_t x = 0; x < t.pixels; x += step)
      for (std::int64_t i = 0; i < blocks; ++i) {
        if (plan.windowed)
          windows_across<C, D>(t, i);
        else
          pixels_across<C, D>(t, i, x, imin(t.pixels, x + step));
      }
}

}  // namespace
}  // namespace convnorm::conv
