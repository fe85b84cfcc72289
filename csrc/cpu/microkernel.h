// The register-tiled inner product that every dense convolution ends in.
//
//   c[m][n] (+)= sum over k of a(m, k) * b(k, n)        0 <= m < MR,  0 <= n < NV * lanes
//
// The accumulators of one tile stay in registers for the whole sum: 6 x 2 vectors of 8 on AVX2 use 12 of the
// 16 registers, two more hold the row of b, one the broadcast of a. Twelve independent FMAs also cover the
// latency (4) times the throughput (2 per cycle) of the FMA units.
//
// b is a row per k: ldb elements apart. a comes in one of three forms:
//   interleaved  a[k * kRows + m]              packed panels (weights of an NCHW problem)
//   by rows      a[m * lda + k]                rows as they lie in memory, or packed so
//   indirect     rows[k / run][m][k % run]     a table of pointers: the rows of a channels_last image, one
//   run of channels
//                                              per filter tap, read where they are (padding points to zeros,
//                                              or null in m = 0 where all rows are padding)
//
// Include after cpu/vec.h.
#pragma once

namespace convnorm {
namespace {

#if CONVNORM_VECTOR_BYTES == 64
inline constexpr int kRows = 12;  // 32 registers: 24 accumulators
#else
inline constexpr int kRows = 6;
#endif
inline constexpr int kColVecs = 2;
template <class C>
inline constexpr int kCols = kColVecs * kLanes<C>;

// What the sum is added to: nothing, a bias, or what c holds.
enum class Start { zero, row_bias, col_bias, add_to_c };

// A sum is made of chains of FMAs; each starts from zero and is added to c when it ends, so that its
// roundings are relative to its own sum and not to the total: half the error of one long chain, for about 6 %
// of the time. Up to kWhole terms are one chain, longer sums are equal pieces of at most kChain, in turns of
// the unrolled loop.
inline constexpr std::int64_t kWhole = 64, kChain = 48;

inline std::int64_t piece_length(std::int64_t n) {
  return n <= kChain ? n : ceil_div(ceil_div(n, ceil_div(n, kChain)), 4) * 4;
}

enum class Form { interleaved, by_rows, indirect };

// One tile's operands. c holds a pointer per row, so that rows may lie anywhere.
template <class C>
struct Tile {
  std::int64_t depth;  // length of the sum
  std::int64_t piece;  // piece_length of depth, or of run
  const C* a;
  std::int64_t lda;
  const C* const* rows;  // indirect: kRows pointers per run
  std::int64_t run;
  std::int64_t skip;  // indirect: added to each pointer (the channels before a group)
  const C* b;
  std::int64_t ldb;
  C* c[kRows];
  Start start;
  const C* bias;  // row_bias: MR values; col_bias: NV * lanes values
};

// acc += a * b over `depth` steps; element (m, k) of a is at a[m][k].
template <class C, int MR, int NV>
inline void accumulate(vec<C> (&acc)[MR][NV], std::int64_t depth, const C* const (&a)[MR], const C* b,
                       std::int64_t ldb) {
#pragma GCC unroll 4
  for (std::int64_t k = 0; k < depth; ++k) {
    vec<C> col[NV];
    for (int v = 0; v < NV; ++v) col[v] = load(b + v * kLanes<C>);
    for (int m = 0; m < MR; ++m) {
      const vec<C> x = splat<C>(a[m][k]);
      for (int v = 0; v < NV; ++v) acc[m][v] += x * col[v];
    }
    b += ldb;
  }
}

// The same with element (m, k) of a at a[k * kRows + m].
template <class C, int MR, int NV>
inline void accumulate(vec<C> (&acc)[MR][NV], std::int64_t depth, const C* a, const C* b, std::int64_t ldb) {
#pragma GCC unroll 4
  for (std::int64_t k = 0; k < depth; ++k) {
    vec<C> col[NV];
    for (int v = 0; v < NV; ++v) col[v] = load(b + v * kLanes<C>);
    for (int m = 0; m < MR; ++m) {
      const vec<C> x = splat<C>(a[m]);
      for (int v = 0; v < NV; ++v) acc[m][v] += x * col[v];
    }
    a += kRows;
    b += ldb;
  }
}

// What the first chain starts from.
template <class C, int MR, int NV>
inline void begin(vec<C> (&acc)[MR][NV], Start start, const C* bias) {
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) acc[m][v] = vec<C>{};
  if (start == Start::row_bias)
    for (int m = 0; m < MR; ++m)
      for (int v = 0; v < NV; ++v) acc[m][v] = splat<C>(bias[m]);
  if (start == Start::col_bias)
    for (int m = 0; m < MR; ++m)
      for (int v = 0; v < NV; ++v) acc[m][v] = load(bias + v * kLanes<C>);
}

// The end of a chain: c = acc or c += acc, and acc back to zero. The pointers are read one by one where they
// are used: copied as vectors, they would wait for the stores that have just written them.
template <class C, int MR, int NV>
inline void fold(vec<C> (&acc)[MR][NV], C* const* c, bool add) {
  constexpr int L = kLanes<C>;
  if (add)
    for (int m = 0; m < MR; ++m)
      for (int v = 0; v < NV; ++v) acc[m][v] += load(c[m] + v * L);
  for (int m = 0; m < MR; ++m) {
    C* const to = c[m];
    for (int v = 0; v < NV; ++v) {
      store(to + v * L, acc[m][v]);
      acc[m][v] = vec<C>{};
    }
  }
}

template <class C, int MR, int NV, Form kForm>
void run_tile(const Tile<C>& t) {
  vec<C> acc[MR][NV];
  begin(acc, t.start, t.bias);
  bool add = t.start == Start::add_to_c;
  const C* b = t.b;
  const C* a[MR];
  if constexpr (kForm == Form::indirect) {
    std::int64_t chain = 0;
    const C* const* rows = t.rows;
    for (std::int64_t k = 0; k < t.depth; k += t.run, rows += kRows, b += t.run * t.ldb) {
      if (!rows[0]) continue;  // padding for every row
      for (std::int64_t i = 0; i < t.run; i += t.piece) {
        const std::int64_t n = imin(t.piece, t.run - i);
        if (chain + n > kChain) {
          fold(acc, t.c, add);
          add = true;
          chain = 0;
        }
        for (int m = 0; m < MR; ++m) a[m] = rows[m] + t.skip + i;
        accumulate(acc, n, a, b + i * t.ldb, t.ldb);
        chain += n;
      }
    }
  } else {
    if constexpr (kForm == Form::by_rows)
      for (int m = 0; m < MR; ++m) a[m] = t.a + m * t.lda;
    for (std::int64_t k = 0; k < t.depth; k += t.piece, b += t.piece * t.ldb) {
      if (k > 0) {
        fold(acc, t.c, add);
        add = true;
      }
      const std::int64_t n = imin(t.piece, t.depth - k);
      if constexpr (kForm == Form::interleaved) {
        accumulate(acc, n, t.a + k * kRows, b, t.ldb);
      } else {
        accumulate(acc, n, a, b, t.ldb);
        for (int m = 0; m < MR; ++m) a[m] += n;
      }
    }
  }
  fold(acc, t.c, add);
}

// The tile functions by number of rows and of column vectors.
template <class C, Form kForm>
struct TileTable {
  using Fn = void (*)(const Tile<C>&);
  Fn fn[kRows + 1][kColVecs + 1] = {};
  template <int MR>
  constexpr void fill() {
    fn[MR][1] = run_tile<C, MR, 1, kForm>;
    fn[MR][2] = run_tile<C, MR, 2, kForm>;
    if constexpr (MR > 1) fill<MR - 1>();
  }
  constexpr TileTable() { fill<kRows>(); }
};
template <class C, Form kForm>
inline constexpr TileTable<C, kForm> kTiles{};

}  // namespace
}  // namespace convnorm
