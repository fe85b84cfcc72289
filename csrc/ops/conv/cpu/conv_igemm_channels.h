// Implicit GEMM, channels across (NHWC): tile rows are pixels, columns are output channels; the rows are read
// in place, through a table of pointers or as stretches of a padded copy, or packed.
//
// Include after conv_igemm_task.h.
#pragma once

namespace convnorm::conv {
namespace {

template <class C, Form kForm>
void run_pixel_rows(const Task<C>& t, TileBlock<C>& tiles, const std::int64_t* rows, std::int64_t vectors) {
  const std::int64_t full = t.pixels / kRows, rest = t.pixels % kRows;
  const C* const a = tiles.a;
  const C* const* const table = tiles.table;
  tiles.rows = full;
  tiles.c_rows = rows;
  if (full > 0) kTiles<C, kForm>.fn[kRows][vectors](tiles);
  if (rest > 0) {
    tiles.rows = 1;
    tiles.ahead += full * asked_by_tile(tiles);
    tiles.c_rows += full * kRows;
    tiles.a += full * tiles.a_step;
    tiles.table += full * kRows * tiles.runs;
    kTiles<C, kForm>.fn[rest][vectors](tiles);
  }
  tiles.a = a;
  tiles.table = table;
}

// The same, a row of outputs at a time.
template <class C>
void run_window_rows(const Task<C>& t, TileBlock<C>& tiles, const std::int64_t* rows, std::int64_t vectors) {
  const Dense& d = *t.d;
  const std::int64_t width = t.work.segments[0].len, lines = t.pixels / width;
  const std::int64_t pitch = window_shape(d, lines, width, d.red_c).pitch;
  for (std::int64_t y = 0; y < lines; ++y) {
    tiles.a = t.work.patches + y * d.axis[1].step * pitch;
    tiles.c_rows = rows + y * width;
    run_equal_tiles<C, Form::strided>(tiles, width, vectors);
    tiles.ahead += ceil_div(width, kRows) * asked_by_tile(tiles);
  }
}

// Where the terms of a block lie in a window of the copy.
inline void window_terms(const Block& b, const std::int64_t* taps, std::int64_t* terms) {
  for (std::int64_t t = b.tap0; t < b.tap1; ++t)
    for (std::int64_t c = b.c0; c < b.c1; ++c) *terms++ = taps[t] + c;
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
  tiles.lda = t.plan->in_place ? d.axis[2].source_stride : t.plan->copied ? d.axis[2].step * d.red_c : t.ldp;
  tiles.a_terms = t.work.terms;
  tiles.skip = (t.group - t.group0) * d.red_c;
  tiles.a_step = kRows * tiles.lda;
  tiles.table = t.work.table;
  tiles.c_step = kCols<C>;
  tiles.b_step = kCols<C> * b.depth();
  tiles.a_pair = d.red_c;
  tiles.b_pair = t.plan->weights;
  C* buffer = t.work.tiles + (t.group - t.group0) * t.buffered;
  for (std::int64_t i = t.panel0; i < t.panel1;) {
    const std::int64_t k0 = t.plan->first_channel(i, d.out_c), channels = d.out_c - k0;
    const std::int64_t lanes = imin(kCols<C>, channels), full = imin(t.panel1 - i, channels / kCols<C>);
    const bool direct = std::is_same_v<C, D> && (kMasked<C> || lanes % kLanes<C> == 0);
    tiles.lanes = direct ? lanes % kLanes<C> : 0;
    D* dst = static_cast<D*>(d.dst) + t.group * d.out_c + k0;
    tiles.columns = direct && full > 1 && t.plan->weights_in_l2(b) ? full : 1;
    tiles.b = weights + i * tiles.b_step;
    tiles.ahead = tiles.ahead_end = tiles.b + tiles.b_step;
    if (tiles.columns == 1 && i + 1 < t.panel1) tiles.ahead_end += tiles.b_step;  // the next panel
    if (bias) tiles.bias = bias + t.group * t.plan->bias_row(d.out_c) + k0;
    direct ? write_direct(t, tiles, dst, lanes, last) : write_buffered(tiles, buffer);
    const std::int64_t vectors = kForm == Form::paired ? 2 : ceil_div(lanes, kLanes<C>);
    const std::int64_t* rows = direct ? t.work.offsets : t.work.lines;
    if constexpr (kForm == Form::strided)
      run_window_rows<C>(t, tiles, rows, vectors);
    else
      run_pixel_rows<C, kForm>(t, tiles, rows, vectors);
    if (last && !direct) flush(d, buffer, dst, t.work.offsets, t.pixels, nullptr, lanes);
    i += tiles.columns;
    buffer += tiles.columns * t.pixels * kCols<C>;
  }
}

template <class C, class D>
void run_channels_across(Task<C>& t) {
  const Dense& d = *t.d;
  const Plan<C>& plan = *t.plan;
  const std::int64_t blocks = plan.cut.count();
  if (plan.copied) {
    const Segment& at = t.work.segments[0];
    const WindowShape shape = window_shape(d, t.pixels / at.len, at.len, d.red_c);
    copied_runs(d, shape, 1, t.work.window);
    copy_pixels<D>(d, shape, at, t.work.patches);
  }
  for (std::int64_t i = 0; i < blocks; ++i) {
    const Block b = plan.cut.block(i);
    const bool first = i == 0, last = i + 1 == blocks;
    if (plan.copied) window_terms(b, t.work.window, t.work.terms);
    if constexpr (std::is_same_v<C, D>)
      if (plan.indirect)
        point_channel_rows<C>(d, t.group0, b, t.work.segments, t.work.segment_count,
                              {t.work.table, t.work.zeros});
    for (t.group = t.group0; t.group < t.group1; ++t.group) {
      const C* weights = block_weights(t, b);
      if (plan.paired && t.group + 1 < t.group1) {
        if constexpr (std::is_same_v<C, D>) channels_across<C, D, Form::paired>(t, b, weights, first, last);
        ++t.group;
        continue;
      }
      if (plan.copied) {
        channels_across<C, D, Form::strided>(t, b, weights, first, last);
        continue;
      }
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

}  // namespace
}  // namespace convnorm::conv
