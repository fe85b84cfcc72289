// One task of the implicit GEMM: its share of the problem, its scratch, and what both orientations do with
// them.
//
// Include after conv_igemm_plan.h.
#pragma once

namespace convnorm::conv {
namespace {

// Scratch of a worker, carved from one allocation.
template <class C>
struct Workspace {
  C* patches;
  const C** table;  // indirect: in place of patches
  C* zeros;
  C* tiles;                // the buffered ones: a column of tiles after the other
  C* held;                 // streamed: the sums of a tile that are not complete
  std::int64_t* offsets;   // of each pixel of the task in the destination
  std::int64_t* channels;  // of each channel of the task, from the first
  std::int64_t* window;    // windowed: of each term, or copied, of each tap, in the copy
  std::int64_t* terms;     // copied: of each term
  std::int64_t* lines;     // of the rows of the buffer: multiples of kCols
  Run* runs;
  Segment* segments;
  Segment* image_rows;  // indirect: the segments as they follow each other
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

// c becomes dst, in rows of n elements, and a sum that is complete is finished on the way.
template <class C, class D>
void write_direct(const Task<C>& t, TileBlock<C>& tiles, D* dst, std::int64_t n, bool last) {
  tiles.c = reinterpret_cast<C*>(dst);
  tiles.residual = last ? reinterpret_cast<const C*>(residual_at(*t.d, dst)) : nullptr;
  tiles.relu = last && t.d->relu;
  tiles.held = t.plan->streamed && whole_lines(tiles.c, n) ? t.work.held : nullptr;
  tiles.held_rows = t.work.lines;
}

template <class C>
void write_buffered(TileBlock<C>& tiles, C* buffer) {
  tiles.c = buffer;
  tiles.held = nullptr;
  tiles.residual = nullptr;
  tiles.relu = false;
}

// Adds the residual of the elements of dst to a column of buffered tiles, and clips it.
template <class C, class D>
[[gnu::noinline]] void finish_buffer(C* buffer, const D* residual, bool clip, const std::int64_t* rows,
                                     std::int64_t row_count, const std::int64_t* columns,
                                     std::int64_t column_count) {
  constexpr std::int64_t L = kLanes<C>;
  for (std::int64_t m = 0; m < row_count; ++m, buffer += kCols<C>)
    for (std::int64_t n = 0; n < column_count; n += L) {
      vec<C> x = load(buffer + n);
      const std::int64_t lanes = imin(L, column_count - n);
      if (residual && columns)
        for (std::int64_t i = 0; i < lanes; ++i) x[i] += load1(residual + rows[m] + columns[n + i]);
      else if (residual)
        x += lanes == L ? load(residual + rows[m] + n) : load_n(residual + rows[m] + n, lanes);
      store(buffer + n, clip ? relu(x) : x);
    }
}

// The same where rows are at most a vector of channels at distance 1: squares are turned in registers.
template <class C>
void flush_turned(const C* buffer, C* dst, std::int64_t channels, const std::int64_t* pixels,
                  std::int64_t count) {
  constexpr std::int64_t L = kLanes<C>;
  for (std::int64_t n = 0; n < count; n += L) {
    vec<C> square[L];
    for (std::int64_t i = 0; i < L; ++i)
      square[i] = i < channels ? load(buffer + i * kCols<C> + n) : vec<C>{};
    transpose<C>(square);
    for (std::int64_t i = 0; i < imin(L, count - n); ++i) store_n(dst + pixels[n + i], square[i], channels);
  }
}

// Writes a column of buffered tiles: row m, column n goes to dst + rows[m] + columns[n], or to consecutive
// columns if that is null.
template <class C, class D>
void flush(const Dense& d, C* buffer, D* dst, const std::int64_t* rows, std::int64_t row_count,
           const std::int64_t* columns, std::int64_t column_count) {
  if (d.residual || d.relu)
    finish_buffer(buffer, residual_at(d, dst), d.relu, rows, row_count, columns, column_count);
  if constexpr (std::is_same_v<C, D> && kMasked<C>)
    if (columns && d.dst_c == 1) return flush_turned(buffer, dst, row_count, columns, column_count);
  for (std::int64_t m = 0; m < row_count; ++m, buffer += kCols<C>) {
    D* to = dst + rows[m];
    if (columns) {
      for (std::int64_t n = 0; n < column_count; ++n) store1(to + columns[n], buffer[n]);
      continue;
    }
    std::int64_t n = 0;
    for (; n + kLanes<C> <= column_count; n += kLanes<C>) store(to + n, load(buffer + n));
    if (n < column_count) store_n(to + n, load(buffer + n), column_count - n);
  }
}

// What all tiles of a block of the sum have in common.
template <class C, Form kForm>
TileBlock<C> block_tiles(const Task<C>& t, const Block& b, bool first) {
  const std::int64_t limit = t.plan->chain;
  TileBlock<C> tiles{};
  tiles.columns = 1;
  tiles.depth = b.depth();
  tiles.runs = b.tap1 - b.tap0;
  tiles.run = b.c1 - b.c0;
  tiles.joined = imax(1, limit / tiles.run);
  // Of a run where the sum goes by runs.
  tiles.piece = piece_length(by_runs(kForm) ? tiles.run : tiles.depth, limit);
  tiles.start = !first                 ? Start::add_to_c
                : !t.d->bias           ? Start::zero
                : t.plan->channel_rows ? Start::col_bias
                                       : Start::row_bias;
  return tiles;
}

template <class C>
const C* block_weights(const Task<C>& t, const Block& b) {
  return t.weights + t.group * t.plan->weights + b.start * t.plan->panels * t.plan->panel;
}

}  // namespace
}  // namespace convnorm::conv
