// The register-tiled inner product that every dense convolution ends in.
//
//   c[m][n] (+)= sum over k of a(m, k) * b(k, n)        0 <= m < MR,  0 <= n < NV * lanes
//
// The accumulators of one tile stay in registers for the whole sum: 6 x 2 vectors of 8 on AVX2 use 12 of the 16
// registers, two more hold the row of b, one the broadcast of a. Twelve independent FMAs also cover the latency (4) times
// the throughput (2 per cycle) of the FMA units.
//
// b is a row per k: ldb elements apart. a comes in one of three forms:
//   interleaved  a[k * kRows + m]              packed panels (weights of an NCHW problem)
//   by rows      a[m * lda + k]                rows as they lie in memory, or packed so
//   indirect     rows[k / run][m][k % run]     a table of pointers: the rows of a channels_last image, one run of channels
//                                              per filter tap, read where they are (padding points to zeros, or null in m = 0 where all rows are padding)
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

// What the accumulators start from.
enum class Start { zero, row_bias, col_bias, add_to_c };

enum class Form { interleaved, by_rows, indirect };

// One tile's operands. c holds a pointer per row, so that rows may lie anywhere.
template <class C>
struct Tile {
  std::int64_t depth;  // length of the sum
  const C* a;
  std::int64_t lda;
  const C* const* rows;  // indirect: kRows pointers per run
  std::int64_t run;
  std::int64_t skip;     // indirect: added to each pointer (the channels before a group)
  const C* b;
  std::int64_t ldb;
  C* c[kRows];
  Start start;
  const C* bias;  // row_bias: MR values; col_bias: NV * lanes values
};

// acc += a * b over `depth` steps; element (m, k) of a is at a[m][k * step].
template <class C, int MR, int NV, int kStep>
inline void accumulate(vec<C> (&acc)[MR][NV], std::int64_t depth, const C* const (&a)[MR], const C* b, std::int64_t ldb) {
#pragma GCC unroll 4
  for (std::int64_t k = 0; k < depth; ++k) {
    vec<C> col[NV];
    for (int v = 0; v < NV; ++v) col[v] = load(b + v * kLanes<C>);
    for (int m = 0; m < MR; ++m) {
      const vec<C> x = splat<C>(a[m][k * kStep]);
      for (int v = 0; v < NV; ++v) acc[m][v] += x * col[v];
    }
    b += ldb;
  }
}

template <class C, int MR, int NV, Form kForm>
void run_tile(const Tile<C>& t) {
  constexpr int L = kLanes<C>;
  vec<C> acc[MR][NV];
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) {
      acc[m][v] = vec<C>{};
      if (t.start == Start::row_bias) acc[m][v] = splat<C>(t.bias[m]);
      if (t.start == Start::col_bias) acc[m][v] = load(t.bias + v * L);
      if (t.start == Start::add_to_c) acc[m][v] = load(t.c[m] + v * L);
    }
  const C* a[MR];
  if constexpr (kForm == Form::indirect) {
    const C* const* rows = t.rows;
    for (std::int64_t k = 0; k < t.depth; k += t.run, rows += kRows) {
      if (!rows[0]) continue;  // padding for every row
      for (int m = 0; m < MR; ++m) a[m] = rows[m] + t.skip;
      accumulate<C, MR, NV, 1>(acc, t.run, a, t.b + k * t.ldb, t.ldb);
    }
  } else {
    for (int m = 0; m < MR; ++m) a[m] = kForm == Form::interleaved ? t.a + m : t.a + m * t.lda;
    accumulate<C, MR, NV, kForm == Form::interleaved ? kRows : 1>(acc, t.depth, a, t.b, t.ldb);
  }
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) store(t.c[m] + v * L, acc[m][v]);
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
