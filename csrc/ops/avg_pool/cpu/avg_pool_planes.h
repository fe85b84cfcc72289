// Average pooling with as many planes at once as a vector has lanes: NCHW, and any other strides.
//
//   task     = (group of planes, depth, block of output rows)
//   columns    the rows of a window row are added as they lie in memory and turned (cpu/planes.h), so that
//              column x of all planes of the group is one vector: one turn per output row, whatever the
//              stride
//   windows    each output is the sum of its columns, divided
//   output     positions are collected until there are kRun of them (planes are dense: a run of rows is a run
//              of positions), then turned back
//
// No window width, stride or unevenness needs code of its own, and nothing depends on the row's length but
// the pieces of kColumns that wide rows are cut into. The backward is the same with the roles exchanged: rows
// of gradients are added and turned, divided, and each input position sums the windows that hold it.
#pragma once

#include "cpu/planes.h"

namespace convnorm::avg_pool {
namespace {

constexpr std::int64_t kColumns = 256;  // turned at a time: 8 KB of floats on AVX2
constexpr std::int64_t kRun = 256;      // positions collected before they are turned back

// The planes of T that a task writes, and positions on their way there.
template <class T, class C>
struct Collector {
  const PlaneGroup<T>& to;
  std::int64_t step;       // elements from one position to the next: planes of a result are dense
  C* held;                 // [positions][lanes]
  std::int64_t first = 0;  // position in the plane
  std::int64_t count = 0;

  C* room() const { return held + count * kLanes<C>; }
  void flush() {
    turn_out(held, count, step, to, first);
    first += count;
    count = 0;
  }
  void added(std::int64_t n) {
    count += n;
    if (count >= kRun) flush();
  }
};

// The sum of n vectors in a row: chains of 16, 16 of which make a part.
template <class C>
inline __attribute__((always_inline)) vec<C> sum_chain(const C* x, std::int64_t n) {
  vec<C> sum = load(x);
  for (std::int64_t i = 1; i < n; ++i) sum += load(x + i * kLanes<C>);
  return sum;
}
template <class C>
inline vec<C> sum_columns(const C* x, std::int64_t n) {
  if (n <= kChain) return sum_chain(x, n);
  vec<C> total{};
  for (std::int64_t b = 0; b < n; b += kChain * kChain) {
    vec<C> part{};
    const std::int64_t end = imin(n, b + kChain * kChain);
    for (std::int64_t i = b; i < end; i += kChain)
      part += sum_chain(x + i * kLanes<C>, imin(kChain, end - i));
    total += part;
  }
  return total;
}

// --- forward ---------------------------------------------------------------------------------------------

template <class T>
struct PlanePool {
  using C = compute_t<T>;
  static constexpr int kWidth = kLanes<C>;

  const Params& p;
  const Axes<C>& axes;
  C* column = nullptr;          // [kColumns][lanes]
  C* held = nullptr;            // [2 * kRun][lanes]
  std::int64_t* row = nullptr;  // starts of a window's rows

  void carve(Arena& arena) {
    column = arena.take<C>(kColumns * kWidth);
    held = arena.take<C>(2 * kRun * kWidth);
    row = arena.take<std::int64_t>(most_rows(p));
  }

  // A block of outputs whose columns fit kColumns; rows in pieces of 16.
  void pool_block(const PlaneGroup<const T>& from, std::int64_t rows, std::int64_t begin, std::int64_t end,
                  C row_count, C* to) const {
    const Span* inside = axes.d[2].inside + begin;
    const C* w_count = axes.d[2].count + begin;
    const std::int64_t x = inside[0].begin, outputs = end - begin;
    for (std::int64_t r = 0; r < rows; r += kChain) {
      turn_in(from, row + r, imin(kChain, rows - r), x * p.input.s[2], p.input.s[2],
              inside[outputs - 1].end - x, column);
      for (std::int64_t o = 0; o < outputs; ++o) {
        vec<C> sum = sum_columns(column + (inside[o].begin - x) * kWidth, inside[o].size());
        if (r > 0) sum += load(to + o * kWidth);
        store(to + o * kWidth, r + kChain < rows ? sum : sum / (row_count * w_count[o]));
      }
    }
  }

  // One output of a wide window: lanes along the row as far as they go.
  void pool_wide(const PlaneGroup<const T>& from, std::int64_t rows, std::int64_t ow, C row_count,
                 C* to) const {
    const Span inside = axes.d[2].inside[ow];
    const std::int64_t step = p.input.s[2];
    LongSum<C> total;
    for (std::int64_t x = inside.begin; x < inside.end; x += kColumns) {
      const std::int64_t n = imin(kColumns, inside.end - x);
      const std::int64_t most = imax(1, kChain * kWidth / n);  // rows that keep chains near 16
      for (std::int64_t r = 0; r < rows; r += most) {
        const std::int64_t count = imin(most, rows - r);
        vec<C> sum;
        if (step == 1 && n >= kWidth) {
          sum = fold_in(from, row + r, count, x, n);
        } else {
          turn_in(from, row + r, count, x * step, step, n, column);
          sum = sum_columns(column, n);
        }
        total.add(sum);
      }
    }
    store(to, total.total() / (row_count * axes.d[2].count[ow]));
  }

  // The end of the block of outputs that starts at `begin`.
  std::int64_t block_end(std::int64_t begin) const {
    const Span* inside = axes.d[2].inside;
    std::int64_t end = begin + 1;
    while (end < p.out[2] && end - begin < kRun && inside[end].end - inside[begin].begin <= kColumns) ++end;
    return end;
  }

  void run(const PlaneGroup<const T>& from, const PlaneGroup<T>& to, std::int64_t od, std::int64_t oh_begin,
           std::int64_t oh_end) const {
    Collector<T, C> out{to, p.output.s[2], held, (od * p.out[1] + oh_begin) * p.out[2]};
    const Span d = axes.d[0].inside[od];
    for (std::int64_t oh = oh_begin; oh < oh_end; ++oh) {
      const Span h = axes.d[1].inside[oh];
      std::int64_t rows = 0;
      for (std::int64_t id = d.begin; id < d.end; ++id)
        for (std::int64_t ih = h.begin; ih < h.end; ++ih) row[rows++] = id * p.input.s[0] + ih * p.input.s[1];
      const C row_count = axes.d[0].count[od] * axes.d[1].count[oh];
      for (std::int64_t ow = 0; ow < p.out[2];) {
        const std::int64_t end = block_end(ow);
        if (end - ow == 1)
          pool_wide(from, rows, ow, row_count, out.room());
        else
          pool_block(from, rows, ow, end, row_count, out.room());
        out.added(end - ow);
        ow = end;
      }
    }
    out.flush();
  }
};

// --- backward --------------------------------------------------------------------------------------------

template <class T>
struct PlaneSpread {
  using C = compute_t<T>;
  static constexpr int kWidth = kLanes<C>;

  const Params& p;
  const Axes<C>& axes;
  std::int64_t columns, covers;  // most of a piece of input, and rows of windows that hold an input row
  C* column = nullptr;           // [columns][lanes] gradients of some window rows
  C* share = nullptr;            // [columns][lanes] divided, and summed over all window rows
  C* held = nullptr;             // [2 * kRun][lanes]
  Row<C>* row = nullptr;         // [covers]
  std::int64_t* start = nullptr;

  void carve(Arena& arena) {
    column = arena.take<C>(columns * kWidth);
    share = arena.take<C>(columns * kWidth);
    held = arena.take<C>(2 * kRun * kWidth);
    row = arena.take<Row<C>>(covers);
    start = arena.take<std::int64_t>(covers);
  }

  std::int64_t list_rows(Span d, Span h) const {
    std::int64_t rows = 0;
    for (std::int64_t od = d.begin; od < d.end; ++od)
      for (std::int64_t oh = h.begin; oh < h.end; ++oh, ++rows) {
        start[rows] = od * p.output.s[0] + oh * p.output.s[1];
        row[rows].count = axes.d[0].count[od] * axes.d[1].count[oh];
      }
    return rows;
  }

  // share[ow] for the windows [ows.begin, ows.end): rows of one count are added before they are divided.
  void share_rows(const PlaneGroup<const T>& from, std::int64_t rows, Span ows) const {
    const std::int64_t first = ows.begin * p.output.s[2];
    const C* w_count = axes.d[2].count + ows.begin;
    const std::int64_t n = ows.size();
    for (std::int64_t r = 0; r < rows;) {
      std::int64_t end = r + 1;
      while (end < rows && end - r < kChain && row[end].count == row[r].count) ++end;
      turn_in(from, start + r, end - r, first, p.output.s[2], n, column);
      const C row_count = row[r].count;
      for (std::int64_t i = 0; i < n; ++i) {
        const vec<C> g = load(column + i * kWidth) / (row_count * w_count[i]);
        store(share + i * kWidth, r == 0 ? g : load(share + i * kWidth) + g);
      }
      r = end;
    }
  }

  void spread_block(std::int64_t rows, std::int64_t begin, std::int64_t end, Span ows, C* to) const {
    const Span* cover = axes.d[2].cover;
    for (std::int64_t iw = begin; iw < end; ++iw, to += kWidth) {
      const std::int64_t n = rows ? cover[iw].size() : 0;
      store(to, n > 0 ? sum_columns(share + (cover[iw].begin - ows.begin) * kWidth, n) : vec<C>{});
    }
  }

  void run(const PlaneGroup<const T>& from, const PlaneGroup<T>& to, std::int64_t id, std::int64_t ih_begin,
           std::int64_t ih_end) const {
    const std::int64_t in_w = p.in[2];
    Collector<T, C> out{to, p.input.s[2], held, (id * p.in[1] + ih_begin) * in_w};
    const Span d = axes.d[0].cover[id];
    Span shared{-1, -1};  // the window rows that share holds
    for (std::int64_t ih = ih_begin; ih < ih_end; ++ih) {
      const Span h = axes.d[1].cover[ih];
      const std::int64_t rows = list_rows(d, h);
      for (std::int64_t iw = 0; iw < in_w; iw += kColumns) {
        const std::int64_t end = imin(in_w, iw + kColumns);
        const Span ows{axes.d[2].cover[iw].begin, axes.d[2].cover[end - 1].end};
        const bool known = in_w <= kColumns && h == shared;
        if (!known) share_rows(from, ows.size() > 0 ? rows : 0, ows);
        shared = h;
        spread_block(rows, iw, end, ows, out.room());
        out.added(end - iw);
      }
    }
    out.flush();
  }
};

// --- both ------------------------------------------------------------------------------------------------

template <class T, class Worker>
void run_planes(const Params& p, const Worker& worker, const Strides& source, const Strides& target,
                const Dims& result, const void* from, void* to) {
  run_tasks<kPlanes<T>>(p, worker, result, [&](const Worker& work, std::int64_t q, auto... rows) {
    work.run(plane_group(static_cast<const T*>(from), source.n, source.c, p.n, p.c, q),
             plane_group(static_cast<T*>(to), target.n, target.c, p.n, p.c, q), rows...);
  });
}

void forward_planes(const Params& p, const void* input, void* output) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    const Axes<compute_t<T>> axes = list_axes<compute_t<T>>(p);
    run_planes<T>(p, PlanePool<T>{p, axes}, p.input, p.output, p.out, input, output);
  });
}

void backward_planes(const Params& p, const void* grad_output, void* grad_input) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    const Axes<compute_t<T>> axes = list_axes<compute_t<T>>(p);
    std::int64_t columns = 0;
    for (std::int64_t iw = 0; iw < p.in[2]; iw += kColumns) {
      const std::int64_t last = imin(p.in[2], iw + kColumns) - 1;
      columns = imax(columns, axes.d[2].cover[last].end - axes.d[2].cover[iw].begin);
    }
    const PlaneSpread<T> worker{p, axes, columns, most_covers(p, axes)};
    run_planes<T>(p, worker, p.output, p.input, p.in, grad_output, grad_input);
  });
}

}  // namespace
}  // namespace convnorm::avg_pool
