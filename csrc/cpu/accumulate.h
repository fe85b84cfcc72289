// The inner loops of the micro-kernel (cpu/microkernel.h): acc += a * b over the terms of a chain.
//
// The accumulators of a tile, MR rows by NV vectors, stay in registers: 6 x 2 vectors of 8 on AVX2 use 12 of
// the 16 registers, two more hold the row of b, one the broadcast of a. Twelve independent FMAs also cover
// the latency (4) times the throughput (2 per cycle) of the FMA units. b is a row of kCols per term where it
// is packed, a constant.
//
// Each leaves the general registers to what it reads: a value that the compiler keeps in a vector register
// instead takes an FMA unit for a cycle whenever it is read, of the twelve that a term has. And each asks for
// a line of memory that is needed later every term or two: spread over the sum, since a core has 16 requests
// under way at most, and a burst of them would hold up the lines that the sum waits for.
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

// Keeps a value that an inner loop reads out of the vector registers.
template <class V>
inline void in_general_register(V& value) {
  asm("" : "+r"(value));
}

// Lines at one distance.
struct Ahead {
  const char* line;
  std::int64_t step;  // 0: there are none
  void ask() {
    __builtin_prefetch(line);
    line += step;
  }
};

// One stretch, a vector's bytes a term (two terms in a loop's body are mixed up by the compiler), for L2: in
// L1 it would push out what is in use.
struct StretchAhead {
  const char* at;
  void ask() {
    __builtin_prefetch(at, 0, 2);
    at += CONVNORM_VECTOR_BYTES;
  }
};

// One term: element m of a by row(m).
template <class C, int MR, int NV, class Row>
[[gnu::always_inline]] inline void add_term(vec<C> (&acc)[MR][NV], const C* b, Row row) {
  vec<C> col[NV];
  for (int v = 0; v < NV; ++v) col[v] = load(b + v * kLanes<C>);
  for (int m = 0; m < MR; ++m) {
    const vec<C> x = splat<C>(row(m));
    for (int v = 0; v < NV; ++v) acc[m][v] += x * col[v];
  }
}

// One term: element m of a at a[m].
template <class C, int MR, int NV>
inline void add_term(vec<C> (&acc)[MR][NV], const C* a, const C* b) {
  add_term(acc, b, [a](int m) { return a[m]; });
}

// Element (m, k) of a at a[m][k]. Counted from the end: one register less.
template <class C, int MR, int NV>
inline void accumulate(vec<C> (&acc)[MR][NV], std::int64_t depth, const C* const (&a)[MR], const C* b,
                       StretchAhead& ahead) {
  const C* end[MR];
  for (int m = 0; m < MR; ++m) end[m] = a[m] + depth;
#pragma GCC unroll 4
  for (std::int64_t k = -depth; k < 0; ++k, b += kCols<C>) {
    ahead.ask();
    add_term(acc, b, [&](int m) { return end[m][k]; });
  }
}

// The same with element (m, k) of a at a[m * lda + at(k)]: a pointer for every fourth row, the others by its
// index.
template <class C, int MR, int NV, class At>
[[gnu::always_inline]] inline void accumulate_strided(vec<C> (&acc)[MR][NV], std::int64_t depth, const C* a,
                                                      std::int64_t lda, const C* b, StretchAhead& ahead,
                                                      At at) {
  constexpr int kFourths = (MR + 3) / 4;
  const C* fourth[kFourths];
  for (int i = 0; i < kFourths; ++i) fourth[i] = a + 4 * i * lda;
  const std::int64_t thrice = 3 * lda;
#pragma GCC unroll 4
  for (std::int64_t k = 0; k < depth; ++k, b += kCols<C>) {
    ahead.ask();
    const std::int64_t term = at(k);
    add_term(acc, b, [&](int m) {
      const C* row = fourth[m / 4] + term;
      return m % 4 == 3 ? row[thrice] : row[m % 4 * lda];
    });
  }
}

// Element (m, k) of a at a[k * lda + m], rows of b ldb apart.
template <class C, int MR, int NV>
inline void accumulate(vec<C> (&acc)[MR][NV], std::int64_t depth, const C* a, std::int64_t lda, const C* b,
                       std::int64_t ldb, Ahead& ahead) {
#pragma GCC unroll 2
  for (std::int64_t k = 0; k + 2 <= depth; k += 2) {
    in_general_register(lda);
    in_general_register(ldb);
    ahead.ask();
    add_term(acc, a, b);
    add_term(acc, a + lda, b + ldb);
    a += 2 * lda;
    b += 2 * ldb;
  }
  if (depth % 2) add_term(acc, a, b);
}

// The same with row k of b at b + b_rows[k].
template <class C, int MR, int NV>
inline void accumulate(vec<C> (&acc)[MR][NV], std::int64_t depth, const C* a, std::int64_t lda, const C* b,
                       const std::int64_t* b_rows) {
#pragma GCC unroll 4
  for (std::int64_t k = 0; k < depth; ++k, a += lda) {
    in_general_register(b);
    add_term(acc, a, b + b_rows[k]);
  }
}

// Rows by pointers, two groups: the second vector of columns has its own a and b.
template <class C, int MR>
inline void accumulate(vec<C> (&acc)[MR][2], std::int64_t depth, const C* const (&a)[MR], std::int64_t a_pair,
                       const C* b, std::int64_t b_pair) {
#pragma GCC unroll 4
  for (std::int64_t k = 0; k < depth; ++k) {
    const vec<C> col[2] = {load(b), load(b + b_pair)};
    for (int m = 0; m < MR; ++m) {
      acc[m][0] += splat<C>(a[m][k]) * col[0];
      acc[m][1] += splat<C>(a[m][k + a_pair]) * col[1];
    }
    b += kCols<C>;
  }
}

}  // namespace
}  // namespace convnorm
