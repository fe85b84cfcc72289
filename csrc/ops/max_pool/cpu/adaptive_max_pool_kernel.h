// Adaptive max pooling in vectors. Two ways to lay a problem into lanes:
//
//   channels   channels_last: a block of kBlock vectors of channels keeps its best values and indices in
//              registers over the whole window. Task = one output row
//   planes     any other strides: as many planes at once as a vector has lanes, turned row by row
//              (cpu/planes.h). Task = a group of planes and one depth; the windows of a block of outputs take
//              each turned row in, their best values and indices wait in scratch
//
// Both try positions in row-major order, so the first of equal values and the last NaN win.
#pragma once

#include "ops/max_pool/cpu/max_pool_kernel.h"

#include "cpu/planes.h"

namespace convnorm::max_pool {
namespace {

constexpr int kBlock = 4;
constexpr std::int64_t kPieceColumns = 256;  // turned at a time

inline Span window_span(const Params& p, int d, std::int64_t o) {
  return adaptive_span(p.in[d], p.out[d], o);
}

inline std::int64_t row_index(const Params& p, std::int64_t id, std::int64_t ih) {
  return (id * p.in[1] + ih) * p.in[2];
}

template <class C>
inline void store_indices(std::int64_t* to, ivec<C> code) {
  typedef std::int64_t Wide __attribute__((vector_size(kLanes<C> * 8)));
  const Wide index = __builtin_convertvector(code, Wide);
  __builtin_memcpy(to, &index, sizeof(index));
}

// --- channels --------------------------------------------------------------------------------------------

template <int kVectors, bool kRecord, class T, class C = compute_t<T>>
inline __attribute__((always_inline)) void pool_window(const Params& p, Span d, Span h, Span w, const T* from,
                                                       T* to, std::int64_t* indices) {
  const std::int64_t step = p.input.s[2];
  Best<C> best[kVectors];
  for (int u = 0; u < kVectors; ++u)
    best[u] = {splat(kLowest<C>), splat_code<C>(row_index(p, d.begin, h.begin) + w.begin)};
  for (std::int64_t id = d.begin; id < d.end; ++id)
    for (std::int64_t ih = h.begin; ih < h.end; ++ih) {
      const T* x = from + id * p.input.s[0] + ih * p.input.s[1] + w.begin * step;
      auto code = splat_code<C>(row_index(p, id, ih) + w.begin);
      for (std::int64_t iw = w.begin; iw < w.end; ++iw, x += step, code += 1)
        for (int u = 0; u < kVectors; ++u) take<kRecord>(best[u], load(x + u * kLanes<C>), code);
    }
  for (int u = 0; u < kVectors; ++u) {
    store(to + u * kLanes<C>, best[u].value);
    if (kRecord) store_indices<C>(indices + u * kLanes<C>, best[u].code);
  }
}

template <bool kRecord, class T>
void channels_row(const Params& p, std::int64_t n, std::int64_t od, std::int64_t oh, Span channels,
                  const T* input, T* output, std::int64_t* indices) {
  constexpr int lanes = kLanes<compute_t<T>>;
  const Span d = window_span(p, 0, od), h = window_span(p, 1, oh);
  for (std::int64_t ow = 0; ow < p.out[2]; ++ow) {
    const Span w = window_span(p, 2, ow);
    const T* from = input + n * p.input.n;
    T* to = output + n * p.output.n + od * p.output.s[0] + oh * p.output.s[1] + ow * p.output.s[2];
    std::int64_t* index =
        kRecord ? indices + n * p.argmax.n + od * p.argmax.s[0] + oh * p.argmax.s[1] + ow * p.argmax.s[2]
                : indices;
    std::int64_t c = channels.begin;
    for (; c + kBlock * lanes <= channels.end; c += kBlock * lanes)
      pool_window<kBlock, kRecord>(p, d, h, w, from + c, to + c, index + (kRecord ? c : 0));
    for (; c < channels.end; c += lanes) {
      const std::int64_t at = imin(c, p.c - lanes);
      pool_window<1, kRecord>(p, d, h, w, from + at, to + at, index + (kRecord ? at : 0));
    }
  }
}

// Few output rows (global pooling) are cut by channels, by shape alone.
void adaptive_channels(const Params& p, const void* input, void* output, void* indices) {
  const std::int64_t rows = p.n * p.out[0] * p.out[1], slab = rows < 64 ? 512 : p.c;
  const std::int64_t slabs = ceil_div(p.c, slab);
  const std::int64_t cost = plane(p) / imax(1, p.out[0] * p.out[1]) * imin(slab, p.c) + 1;
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto row = p.record == Argmax::none ? channels_row<false, T> : channels_row<true, T>;
    parallel_for(rows * slabs, ceil_div(32768, cost), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t r = task / slabs, c = task % slabs * slab;
        row(p, r / p.out[1] / p.out[0], r / p.out[1] % p.out[0], r % p.out[1], {c, imin(p.c, c + slab)},
            static_cast<const T*>(input), static_cast<T*>(output), static_cast<std::int64_t*>(indices));
      }
    });
  });
}

// --- planes ----------------------------------------------------------------------------------------------

template <class T, bool kRecord>
struct PlaneMax {
  using C = compute_t<T>;
  using I = code_t<C>;
  static constexpr int kWidth = kLanes<C>;

  const Params& p;
  PlaneGroup<const T> from{};
  PlaneGroup<T> to{};
  PlaneGroup<std::int64_t> indices{};
  C* column = nullptr;  // [kPieceColumns][lanes] of one input row
  C* value = nullptr;   // [out_h * out_w][lanes] of one depth
  I* code = nullptr;

  void carve(Arena& arena) {
    const std::int64_t slice = p.out[1] * p.out[2] * kWidth;
    column = arena.take<C>(kPieceColumns * kWidth);
    value = arena.take<C>(slice);
    code = arena.take<I>(kRecord ? slice : 0);
  }

  // The part [x, x + n) of an input row into the windows [begin, end).
  void take_row(std::int64_t begin, std::int64_t end, std::int64_t x, std::int64_t n, std::int64_t index,
                C* values, I* codes) const {
    for (std::int64_t o = begin; o < end; ++o) {
      const Span w = window_span(p, 2, o);
      const std::int64_t left = imax(w.begin, x), right = imin(w.end, x + n), at = (o - begin) * kWidth;
      Best<C> best{load(values + at), {}};
      if constexpr (kRecord) best.code = load_code<C>(codes + at);
      auto here = splat_code<C>(index + left);
      for (std::int64_t i = left; i < right; ++i, here += 1)
        take<kRecord>(best, load(column + (i - x) * kWidth), here);
      store(values + at, best.value);
      if constexpr (kRecord) __builtin_memcpy(codes + at, &best.code, sizeof(best.code));
    }
  }

  // The windows [begin, end) of one output row.
  void pool_block(Span d, Span h, std::int64_t begin, std::int64_t end, C* values, I* codes) const {
    const std::int64_t first = row_index(p, d.begin, h.begin), step = p.input.s[2];
    for (std::int64_t o = begin; o < end; ++o) {
      store(values + (o - begin) * kWidth, splat(kLowest<C>));
      if constexpr (kRecord) {
        const auto start = splat_code<C>(first + window_span(p, 2, o).begin);
        __builtin_memcpy(codes + (o - begin) * kWidth, &start, sizeof(start));
      }
    }
    const Span columns{window_span(p, 2, begin).begin, window_span(p, 2, end - 1).end};
    for (std::int64_t id = d.begin; id < d.end; ++id)
      for (std::int64_t ih = h.begin; ih < h.end; ++ih)
        for (std::int64_t x = columns.begin; x < columns.end; x += kPieceColumns) {
          const std::int64_t n = imin(kPieceColumns, columns.end - x);
          const std::int64_t start = id * p.input.s[0] + ih * p.input.s[1] + x * step;
          turn_in(from, &start, 1, 0, step, n, column);
          take_row(begin, end, x, n, row_index(p, id, ih), values, codes);
        }
  }

  void run(std::int64_t od) const {
    const Span d = window_span(p, 0, od);
    const std::int64_t out_w = p.out[2], slice = p.out[1] * out_w;
    for (std::int64_t oh = 0; oh < p.out[1]; ++oh)
      for (std::int64_t ow = 0; ow < out_w;) {
        std::int64_t end = ow + 1;
        while (end < out_w && window_span(p, 2, end).end - window_span(p, 2, ow).begin <= kPieceColumns)
          ++end;
        const std::int64_t at = (oh * out_w + ow) * kWidth;
        pool_block(d, window_span(p, 1, oh), ow, end, value + at, kRecord ? code + at : code);
        ow = end;
      }
    turn_out(value, slice, p.output.s[2], to, od * slice);
    if constexpr (kRecord)
      for (std::int64_t l = 0; l < to.count; ++l)
        for (std::int64_t i = 0; i < slice; ++i)
          indices.plane[l][(od * slice + i) * p.argmax.s[2]] = code[i * kWidth + l];
  }
};

template <class T, bool kRecord>
void planes_of(const Params& p, const T* input, T* output, std::int64_t* indices) {
  constexpr int lanes = kPlanes<T>;
  parallel_for(ceil_div(p.n * p.c, lanes) * p.out[0], ceil_div(65536, lanes * plane(p)),
               [&](std::int64_t begin, std::int64_t end) {
                 PlaneMax<T, kRecord> work{p};
                 carve_scratch(Slot::local, [&](Arena& arena) { work.carve(arena); });
                 for (std::int64_t task = begin; task < end; ++task) {
                   const std::int64_t q = task / p.out[0] * lanes;
                   work.from = plane_group(input, p.input.n, p.input.c, p.n, p.c, q);
                   work.to = plane_group(output, p.output.n, p.output.c, p.n, p.c, q);
                   for (int l = 0; kRecord && l < work.to.count; ++l)
                     work.indices.plane[l] =
                         indices + (q + l) / p.c * p.argmax.n + (q + l) % p.c * p.argmax.c;
                   work.run(task % p.out[0]);
                 }
               });
}

void adaptive_planes(const Params& p, const void* input, void* output, void* indices) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = p.record == Argmax::none ? planes_of<T, false> : planes_of<T, true>;
    run(p, static_cast<const T*>(input), static_cast<T*>(output), static_cast<std::int64_t*>(indices));
  });
}

}  // namespace
}  // namespace convnorm::max_pool
