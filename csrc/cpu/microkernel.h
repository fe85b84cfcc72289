// The register-tiled inner product that every dense convolution ends in.
//
//   c[m][n] (+)= sum over k of a(m, k) * b(k, n)        0 <= m < MR,  0 <= n < NV * lanes
//
// The accumulators of one tile stay in registers for a whole chain of the sum (cpu/accumulate.h).
//
// b is a row per k, kCols elements apart. a and b come in one of six forms:
//   interleaved  a[k * lda + m]         packed panels (weights of an NCHW problem), where lda is kRows, or
//                                       rows as they lie in memory; rows of b ldb apart
//   by rows      a[m * lda + k]         rows as they lie in memory, or packed so
//   indirect     rows[k / run][m][k % run]  a table of pointers: rows of a channels_last image, a run of
//                                       channels per filter tap, read where they are (padding points to
//                                       zeros, or null in m = 0 where all rows are padding)
//   strided      a[m * lda + a_terms[k]]  rows at one distance, terms anywhere in them: windows of a copy
//   paired       indirect, with a second a and b for the second vector of columns: two groups side by side
//   windowed     a interleaved; row k of b at b + b_rows[k]: rows of a padded image, shifted by each tap
//
// Include after cpu/vec.h.
#pragma once

#include "cpu/accumulate.h"
#include "cpu/stream.h"

namespace convnorm {
namespace {

// What the first chain of a sum is added to: nothing, a bias, or what c holds.
enum class Start { zero, row_bias, col_bias, add_to_c };

// A sum is made of chains of FMAs; each starts from zero and is added to c when it ends, so that its
// roundings are relative to its own sum and not to the total. Writing a tile takes 24 cycles (a store holds
// up both FMA units for one), as much as 4 terms; the error of n terms in chains of l grows as sqrt(l + n /
// l), so longer sums take longer chains. One chain over the whole sum would have up to 3.8 times torch's
// error.
inline std::int64_t chain_limit(std::int64_t terms) { return terms <= 192 ? 48 : terms <= 512 ? 64 : 80; }

// n terms in equal chains of at most `limit`, in turns of the unrolled loop.
inline std::int64_t piece_length(std::int64_t n, std::int64_t limit) {
  return n <= limit ? n : ceil_div(ceil_div(n, ceil_div(n, limit)), 4) * 4;
}

enum class Form { interleaved, by_rows, indirect, strided, paired, windowed };
// Whether the sum goes run by run.
constexpr bool by_runs(Form form) { return form == Form::indirect || form == Form::paired; }

// A block of c: `rows` by `columns` tiles. Many tiles in one call: a call per tile costs 90 cycles more, as
// much as 15 terms.
template <class C>
struct TileBlock {
  std::int64_t rows, columns;
  std::int64_t depth;  // length of the sum
  std::int64_t piece;  // piece_length of depth, or of run
  const C* a;
  std::int64_t lda;             // by rows, strided: from row to row; interleaved, windowed: from term to term
  std::int64_t a_step;          // from one tile's rows to the next's
  const C* const* table;        // indirect: kRows pointers per run, tile after tile
  const std::int64_t* a_terms;  // strided: of each term in a row
  std::int64_t runs, run;       // by runs: how many of them per row, and terms of one
  std::int64_t skip;            // by runs: added to each (the channels before a group or a block)
  std::int64_t joined;          // by runs: how many in a chain
  std::int64_t a_pair, b_pair;  // paired: from the first vector's operands to the second's
  const C* b;
  std::int64_t ldb;  // interleaved: from term to term
  const C* ahead;  // needed after this block: interleaved, rows of b, ahead_ld apart; else b, up to ahead_end
  const C* ahead_end;
  std::int64_t ahead_ld;
  std::int64_t ahead_lines;    // cache lines of each
  std::int64_t b_step;         // from one tile's columns to the next's
  const std::int64_t* b_rows;  // windowed: of each term
  C* c;
  const std::int64_t* c_rows;  // row m of tile row i starts at c + c_rows[i * MR + m]
  std::int64_t c_step;         // from one tile's columns to the next's
  Start start;
  const C* bias;       // row_bias: a value per row; col_bias: one per column
  const C* residual;   // of complete sums: laid out as c, added to it; or null
  bool relu;           // then c = max(0, c)
  std::int64_t lanes;  // written of the last vector of columns; 0: all. Only where kMasked
  C* held;  // not null: c is written around the caches, and a sum that is not complete is kept here,
  const std::int64_t* held_rows;  // its rows there
};

// Elements of a stretch that a tile asks for: a vector per term.
template <class C>
inline std::int64_t asked_by_tile(const TileBlock<C>& t) {
  return t.depth * kLanes<C>;
}

// Whether rows of c may end within a vector: where masked loads and stores cost no more than whole ones.
template <class C>
inline constexpr bool kMasked = CONVNORM_VECTOR_BYTES == 64 && std::is_same_v<C, float>;

// acc += the tile at c, whose last vector has `lanes` columns.
template <class C, int MR, int NV>
inline void add_tile(vec<C> (&acc)[MR][NV], const C* c, const std::int64_t* c_rows, std::int64_t lanes) {
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) {
      const C* at = c + c_rows[m] + v * kLanes<C>;
      acc[m][v] += kMasked<C> && v == NV - 1 ? load_n(at, lanes) : load(at);
    }
}

template <class C, int MR, int NV>
inline void store_tile_rows(const vec<C> (&acc)[MR][NV], C* c, const std::int64_t* c_rows,
                            std::int64_t lanes) {
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) {
      C* at = c + c_rows[m] + v * kLanes<C>;
      (kMasked<C> && v == NV - 1) ? store_n(at, acc[m][v], lanes) : store(at, acc[m][v]);
    }
}

template <class C, int MR, int NV>
inline void stream_tile_rows(const vec<C> (&acc)[MR][NV], C* c, const std::int64_t* c_rows) {
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) stream(c + c_rows[m] + v * kLanes<C>, acc[m][v]);
}

// What is done with complete sums while they are in registers.
template <class C, int MR, int NV>
inline void finish(vec<C> (&acc)[MR][NV], const TileBlock<C>& t, const C* c, const std::int64_t* c_rows,
                   std::int64_t lanes) {
  if (t.residual) add_tile<C, MR, NV>(acc, t.residual + (c - t.c), c_rows, lanes);
  if (!t.relu) return;
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) acc[m][v] = relu(acc[m][v]);
}

// The end of a chain: c = acc + what the chain is added to. The last one completes the sum.
template <class C, int MR, int NV>
inline void fold(vec<C> (&acc)[MR][NV], const TileBlock<C>& t, C* c, const std::int64_t* c_rows, Start start,
                 const C* bias, bool last) {
  constexpr int L = kLanes<C>;
  const std::int64_t lanes = t.lanes ? t.lanes : L;
  C* sum = t.held ? t.held : c;
  const std::int64_t* sum_rows = t.held ? t.held_rows : c_rows;
  if (start == Start::add_to_c) {
    add_tile<C, MR, NV>(acc, sum, sum_rows, lanes);
  } else if (start == Start::row_bias) {
    for (int m = 0; m < MR; ++m)
      for (int v = 0; v < NV; ++v) acc[m][v] += splat<C>(bias[m]);
  } else if (start == Start::col_bias) {
    for (int m = 0; m < MR; ++m)
      for (int v = 0; v < NV; ++v) acc[m][v] += load(bias + v * L);
  }
  if (last) finish(acc, t, c, c_rows, lanes);
  if (last && t.held) return stream_tile_rows<C, MR, NV>(acc, c, c_rows);
  store_tile_rows<C, MR, NV>(acc, sum, sum_rows, lanes);
}

template <class C, int MR, int NV>
inline void clear(vec<C> (&acc)[MR][NV]) {
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) acc[m][v] = vec<C>{};
}

// One tile of a packed a, from tile_a.
template <class C, int MR, int NV, Form kForm, class A>
[[gnu::always_inline]] inline void packed_tile(const TileBlock<C>& t, const C* tile_a, const C* b, C* c,
                                               const std::int64_t* c_rows, const C* bias, A ahead) {
  const std::int64_t piece = t.piece, ldb = kForm == Form::interleaved ? t.ldb : kCols<C>;
  Start start = t.start;
  for (std::int64_t k = 0;;) {
    const std::int64_t n = imin(piece, t.depth - k);
    vec<C> acc[MR][NV];
    clear<C>(acc);
    if constexpr (kForm == Form::interleaved) {
      accumulate(acc, n, tile_a + k * t.lda, t.lda, b, ldb, ahead);
    } else if constexpr (kForm == Form::windowed) {
      accumulate(acc, n, tile_a + k * t.lda, t.lda, b, t.b_rows + k);
    } else if constexpr (kForm == Form::strided) {
      const std::int64_t* terms = t.a_terms + k;
      accumulate_strided(acc, n, tile_a, t.lda, b, ahead, [terms](std::int64_t i) { return terms[i]; });
    } else {
      accumulate_strided(acc, n, tile_a + k, t.lda, b, ahead, [](std::int64_t i) { return i; });
    }
    k += n;
    const bool last = k >= t.depth;
    fold(acc, t, c, c_rows, start, bias, last);
    if (last) return;
    if constexpr (kForm != Form::windowed) b += n * ldb;
    start = Start::add_to_c;
  }
}

// One tile of rows read where they are. A chain is `joined` runs, or a piece of one.
template <class C, int MR, int NV, Form kForm>
[[gnu::noinline]] void tile_by_runs(const TileBlock<C>& t, const C* const* table, const C* b, C* c,
                                    const std::int64_t* c_rows, const C* bias, StretchAhead ahead) {
  constexpr std::int64_t ldb = kCols<C>;
  const std::int64_t run = t.run, skip = t.skip, piece = t.piece, runs = t.runs, joined = t.joined;
  Start start = t.start;
  std::int64_t r = 0;
  do {
    for (std::int64_t i = 0; i < run; i += piece) {
      const std::int64_t n = imin(piece, run - i), end = imin(runs, r + joined);
      vec<C> acc[MR][NV];
      clear<C>(acc);
      for (std::int64_t j = r; j < end; ++j) {
        const C* const* rows = table + j * kRows;
        if (!rows[0]) continue;  // padding for every row
        const C* a[MR];
        for (int m = 0; m < MR; ++m) a[m] = rows[m] + skip + i;
        if constexpr (kForm == Form::paired)
          accumulate(acc, n, a, t.a_pair, b + (j * run + i) * ldb, t.b_pair);
        else
          accumulate(acc, n, a, b + (j * run + i) * ldb, ahead);
      }
      fold(acc, t, c, c_rows, start, bias, end == runs && i + n >= run);
      start = Start::add_to_c;
    }
    r += joined;
  } while (r < runs);
}

// What tile (i, j) of a block asks for, a line every other term: one of the lines of every other row ahead,
// or where none are left, its part of the next panel of a.
template <class C>
inline Ahead lines_ahead(const TileBlock<C>& t, const C* a, std::int64_t i, std::int64_t j) {
  constexpr std::int64_t line = 64 / sizeof(C);
  const std::int64_t n = i * t.columns + j, part = j * (t.depth / 2 * line);
  if (n / 2 < t.ahead_lines)
    return {reinterpret_cast<const char*>(t.ahead + n % 2 * t.ahead_ld + n / 2 * line),
            2 * t.ahead_ld * static_cast<std::int64_t>(sizeof(C))};
  const bool panels = t.a_step == t.lda * t.depth && part < t.a_step;
  return {reinterpret_cast<const char*>(panels ? a + t.a_step + part : a), panels ? 64 : 0};
}

// The lines of a tile, needed when its chain ends: the caches may not have them.
template <class C, int MR, int NV>
inline void ask_for_tile(const C* c, const std::int64_t* c_rows) {
  for (int m = 0; m < MR; ++m)
    for (int n = 0; n < NV * kLanes<C>; n += 64 / int(sizeof(C))) __builtin_prefetch(c + c_rows[m] + n);
}

// The same of a stretch, after i tiles; past its end, lines of b, which are at hand.
template <class C>
inline StretchAhead stretch_ahead(const TileBlock<C>& t, const C* b, std::int64_t i) {
  const C* at = t.ahead ? t.ahead + i * asked_by_tile(t) : nullptr;
  return {reinterpret_cast<const char*>(at < t.ahead_end ? at : b)};
}

template <Form kForm, class C>
inline auto ahead_of_tile(const TileBlock<C>& t, const C* a, const C* b, std::int64_t i, std::int64_t j) {
  if constexpr (kForm == Form::interleaved)
    return lines_ahead(t, a, i, j);
  else
    return stretch_ahead(t, b, i);
}

template <class C, int MR, int NV, Form kForm>
void run_tiles(const TileBlock<C>& t) {
  const C* a = t.a;
  const C* bias = t.bias;
  const C* const* table = t.table;
  const std::int64_t* c_rows = t.c_rows;
  for (std::int64_t i = 0; i < t.rows; ++i, c_rows += MR) {
    for (std::int64_t j = 0; j < t.columns; ++j) {
      C* c = t.c + j * t.c_step;
      const C* b = t.b + j * t.b_step;
      if (!t.held) ask_for_tile<C, MR, NV>(c, c_rows);
      if (t.residual) ask_for_tile<C, MR, NV>(t.residual + (c - t.c), c_rows);
      const C* tile_bias = t.start == Start::col_bias ? bias + j * NV * kLanes<C> : bias;
      const auto ahead = ahead_of_tile<kForm>(t, a, b, i, j);
      if constexpr (by_runs(kForm))
        tile_by_runs<C, MR, NV, kForm>(t, table, b, c, c_rows, tile_bias, ahead);
      else
        packed_tile<C, MR, NV, kForm>(t, a, b, c, c_rows, tile_bias, ahead);
    }
    a += t.a_step;
    if constexpr (by_runs(kForm)) table += t.runs * kRows;
    if (t.start == Start::row_bias) bias += MR;
  }
}

// The tile functions by number of rows and of column vectors.
template <class C, Form kForm>
struct TileTable {
  using Fn = void (*)(const TileBlock<C>&);
  Fn fn[kRows + 1][kColVecs + 1] = {};
  template <int MR>
  constexpr void fill() {
    if constexpr (kForm != Form::paired) fn[MR][1] = run_tiles<C, MR, 1, kForm>;
    fn[MR][2] = run_tiles<C, MR, 2, kForm>;
    if constexpr (MR > 1) fill<MR - 1>();
  }
  constexpr TileTable() { fill<kRows>(); }
};
template <class C, Form kForm>
inline constexpr TileTable<C, kForm> kTiles{};

// `rows` rows from tiles.a in tiles of equal height, but for one row. Blocks are passed by reference and left
// as they were: a copy waits for the fields that have just been written.
template <class C, Form kForm>
void run_equal_tiles(TileBlock<C>& tiles, std::int64_t rows, std::int64_t vectors) {
  const C *const a = tiles.a, *const ahead = tiles.ahead;
  const std::int64_t* const c_rows = tiles.c_rows;
  const std::int64_t count = ceil_div(rows, kRows), height = rows / count, taller = rows % count;
  for (const bool more : {true, false}) {
    const std::int64_t h = height + more;
    tiles.rows = more ? taller : count - taller;
    tiles.a_step = h * (kForm == Form::interleaved ? 1 : tiles.lda);
    if (tiles.rows > 0) kTiles<C, kForm>.fn[h][vectors](tiles);
    tiles.a += tiles.rows * tiles.a_step;
    tiles.c_rows += tiles.rows * h;
    if (kForm != Form::interleaved && ahead) tiles.ahead += tiles.rows * asked_by_tile(tiles);
  }
  tiles.a = a;
  tiles.c_rows = c_rows;
  tiles.ahead = ahead;
}

}  // namespace
}  // namespace convnorm
