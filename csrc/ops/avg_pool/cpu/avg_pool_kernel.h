// What the vectorised kernels share: the spans of every dimension, worked out once per call, and division.
#pragma once

#include "cpu/arena.h"
#include "cpu/vec.h"

namespace convnorm::avg_pool {
namespace {

// One dimension: what each window sums and counts, and the windows that hold each coordinate.
template <class C>
struct Axis {
  Span* inside;  // [out]
  C* count;      // [out]
  Span* cover;   // [in]
};

template <class C>
struct Axes {
  Axis<C> d[kSpatial];
};

template <class C>
inline Axes<C> carve_axes(const Params& p, Arena& arena) {
  Axes<C> axes;
  for (int d = 0; d < kSpatial; ++d)
    axes.d[d] = {arena.take<Span>(p.out[d]), arena.take<C>(p.out[d]), arena.take<Span>(p.in[d])};
  return axes;
}

// In scratch of the caller, for all workers to read.
template <class C>
inline Axes<C> list_axes(const Params& p) {
  const Axes<C> axes = carve_scratch(Slot::shared, [&](Arena& arena) { return carve_axes<C>(p, arena); });
  for (int d = 0; d < kSpatial; ++d) {
    const Axis<C>& axis = axes.d[d];
    for (std::int64_t o = 0; o < p.out[d]; ++o) {
      axis.inside[o] = span_inside(p, d, o);
      axis.count[o] = static_cast<C>(count(p, d, o));
    }
    std::int64_t begin = 0, end = 0;  // both ends of windows only move up
    for (std::int64_t i = 0; i < p.in[d]; ++i) {
      while (begin < p.out[d] && axis.inside[begin].end <= i) ++begin;
      while (end < p.out[d] && axis.inside[end].begin <= i) ++end;
      axis.cover[i] = {begin, end};
    }
  }
  return axes;
}

// A row of windows (forward) or of windows' gradients (backward).
template <class C>
struct Row {
  std::int64_t start;  // elements from the image's first
  C count;             // its factor in the divisor
};

// Adds without losing what the sum rounds away (Knuth's two-sum): the last level of sums over large windows.
template <class C>
struct LongSum {
  vec<C> high{}, low{};
  void add(vec<C> x) {
    const vec<C> sum = high + x, back = sum - high;
    low += (high - (sum - back)) + (x - back);
    high = sum;
  }
  // An infinity leaves NaN in low, and the answer in high.
  vec<C> total() const { return low == low ? high + low : high; }
};

constexpr std::int64_t kChain = 16;  // additions in one chain of a large window

inline bool large_windows(const Params& p) {
  std::int64_t positions = 1;
  for (int d = 0; d < kSpatial; ++d)
    positions *=
        p.adaptive ? p.in[d] / imax(p.out[d], 1) + (p.in[d] % imax(p.out[d], 1) ? 2 : 0) : p.window.kernel[d];
  return positions > 64;
}

constexpr std::int64_t kTaskWork = 65536;  // elements per task

// The tasks of the kernels for planes: a group of kGroup planes, one depth, and a block of rows of the
// result. Calls run(worker, first plane, depth, first row, end of rows); workers carve their scratch once per
// thread.
template <int kGroup, class Worker, class F>
void run_tasks(const Params& p, const Worker& worker, const Dims& result, F&& run) {
  const std::int64_t volume = p.in[0] * p.in[1] * p.in[2] + p.out[0] * p.out[1] * p.out[2];
  const std::int64_t row_work = imax(1, kGroup * volume / imax(1, result[0] * result[1]));
  const std::int64_t task_rows = imin(result[1], ceil_div(kTaskWork, row_work));
  const std::int64_t row_tasks = ceil_div(result[1], task_rows);
  const std::int64_t tasks = ceil_div(p.n * p.c, kGroup) * result[0] * row_tasks;
  parallel_for(tasks, ceil_div(kTaskWork, task_rows * row_work), [&](std::int64_t begin, std::int64_t end) {
    Worker work = worker;
    carve_scratch(Slot::local, [&](Arena& arena) { work.carve(arena); });
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t first = task % row_tasks * task_rows, rest = task / row_tasks;
      run(work, rest / result[0] * kGroup, rest % result[0], first, imin(result[1], first + task_rows));
    }
  });
}

}  // namespace
}  // namespace convnorm::avg_pool

#include "ops/avg_pool/cpu/avg_pool_channels.h"
#include "ops/avg_pool/cpu/avg_pool_rows.h"
#include "ops/avg_pool/cpu/avg_pool_runs.h"
#include "ops/avg_pool/cpu/avg_pool_planes.h"
