// Average pooling with vectors along the row: NCHW, evenly spaced windows of stride 1 or 2.
//
//   task       = rows of the result, of one depth of one plane
//   forward      output o is the sum of in[o*stride + t - pad] over the taps t and the rows of its window:
//                vectors at stride 1; at stride 2 the even and odd lanes of two vectors, summed over the rows
//                before they are taken apart
//   backward     position stride*m + f - pad is the sum of shares g[m - t/stride] over the taps t = f mod
//                stride; at stride 2 even and odd positions are interleaved. Rows that the same windows cover
//                are the same row: made once, stored several times
//
// Vectors run where all windows lie inside the row and count alike, straight from and to memory (the last one
// overlaps the one before it); the few positions at the borders are done one by one.
#pragma once

namespace convnorm::avg_pool {
namespace {

// f(i) for vectors at i that cover the span; the last overlaps the one before it.
template <class C, class F>
inline __attribute__((always_inline)) void each_vector(Span span, F&& f) {
  std::int64_t i = span.begin;
  for (; i + kLanes<C> <= span.end; i += kLanes<C>) f(i);
  if (i < span.end) f(span.end - kLanes<C>);
}

// f(i) for all i of [0, n) outside of the span.
template <class F>
inline void each_border(Span span, std::int64_t n, F&& f) {
  for (std::int64_t i = 0; i < span.begin; ++i) f(i);
  for (std::int64_t i = imax(span.end, span.begin); i < n; ++i) f(i);
}

// The span, or nothing where it is shorter than a vector.
template <class C>
inline Span wide_enough(Span span) {
  return span.size() < kLanes<C> ? Span{0, 0} : span;
}

// --- forward ---------------------------------------------------------------------------------------------

// The windows of kLanes outputs, the first of which starts at `from`.
template <int kStride, int kTaps, class T, class C>
inline __attribute__((always_inline)) vec<C> sum_windows(const T* from, const Row<C>* row, std::int64_t rows,
                                                         std::int64_t taps) {
  if (kTaps) taps = kTaps;
  vec<C> sum{};
  for (std::int64_t t = 0; t < taps; t += kStride) {
    vec<C> a{}, b{};
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* x = from + row[r].start + t;
      a += load(x);
      if constexpr (kStride == 2) b += load(x + kLanes<C>);
    }
    if constexpr (kStride == 1) {
      sum += a;
    } else {
      sum += even_lanes(a, b, kEachLane<C>);
      if (t + 1 < taps) sum += odd_lanes(a, b, kEachLane<C>);
    }
  }
  return sum;
}

template <class T>
struct RowPool {
  using C = compute_t<T>;
  const Params& p;
  const Axes<C>& axes;
  Span whole = wide_enough<C>(whole_windows(p));
  Row<C>* row = nullptr;

  void carve(Arena& arena) { row = arena.take<Row<C>>(most_rows(p)); }

  template <int kStride, int kTaps, int kRows>
  void pool_row(const T* from, std::int64_t rows, C row_count, T* to) const {
    const std::int64_t pad = p.window.pad[2], taps = p.window.kernel[2];
    const Axis<C> w = axes.d[2];
    const Row<C>* list = row;
    if (kRows) rows = kRows;
    each_vector<C>(whole, [&](std::int64_t o) __attribute__((always_inline)) {
      const vec<C> sum = sum_windows<kStride, kTaps>(from + kStride * o - pad, list, rows, taps);
      store(to + o, sum / (row_count * load(w.count + o)));
    });
    each_border(whole, p.out[2], [&](std::int64_t o) {
      C sum = 0;
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t i = w.inside[o].begin; i < w.inside[o].end; ++i)
          sum += load1(from + list[r].start + i);
      store1(to + o, sum / (row_count * w.count[o]));
    });
  }

  void run(const T* from, T* to, std::int64_t od, std::int64_t begin, std::int64_t end) const {
    const Window& w = p.window;
    const Span d = axes.d[0].inside[od];
    for (std::int64_t oh = begin; oh < end; ++oh) {
      const Span h = axes.d[1].inside[oh];
      std::int64_t rows = 0;
      for (std::int64_t id = d.begin; id < d.end; ++id)
        for (std::int64_t ih = h.begin; ih < h.end; ++ih)
          row[rows++].start = id * p.input.s[0] + ih * p.input.s[1];
      const C row_count = axes.d[0].count[od] * axes.d[1].count[oh];
      T* out = to + od * p.output.s[0] + oh * p.output.s[1];
      if (w.stride[2] == 1)
        w.kernel[2] == 3 && rows == 3 ? pool_row<1, 3, 3>(from, rows, row_count, out)
                                      : pool_row<1, 0, 0>(from, rows, row_count, out);
      else if (w.kernel[2] == 2)
        rows == 2 ? pool_row<2, 2, 2>(from, rows, row_count, out)
                  : pool_row<2, 2, 0>(from, rows, row_count, out);
      else
        w.kernel[2] == 3 && rows == 3 ? pool_row<2, 3, 3>(from, rows, row_count, out)
                                      : pool_row<2, 0, 0>(from, rows, row_count, out);
    }
  }
};

// --- backward --------------------------------------------------------------------------------------------

template <class T>
struct RowSpread {
  using C = compute_t<T>;
  static constexpr int kWidth = kLanes<C>;
  const Params& p;
  const Axes<C>& axes;
  std::int64_t covers;         // window rows that hold an input row, at most
  Span slots = plain_slots();  // m of the vectors
  Row<C>* row = nullptr;

  void carve(Arena& arena) { row = arena.take<Row<C>>(covers); }

  // Where all windows m - t/stride exist and count alike, and all positions stride*m + f - pad lie in the
  // row.
  Span plain_slots() const {
    const Window& w = p.window;
    const C* count = axes.d[2].count;
    const std::int64_t s = w.stride[2], back = (w.kernel[2] - 1) / s, middle = p.out[2] / 2;
    std::int64_t begin = middle, end = middle;
    while (begin > 0 && count[begin - 1] == count[middle]) --begin;
    while (end < p.out[2] && count[end] == count[middle]) ++end;
    return wide_enough<C>({imax(begin + back, ceil_div(w.pad[2], s)), imin(end, (p.in[2] + w.pad[2]) / s)});
  }

  // One vector of shares for each phase of the positions of slots m, m + 1, ...
  template <int kStride, int kTaps>
  inline __attribute__((always_inline)) void gather(const T* from, std::int64_t rows, C w_count,
                                                    std::int64_t m, vec<C>* total) const {
    const std::int64_t taps = kTaps ? kTaps : p.window.kernel[2];
    for (int f = 0; f < kStride; ++f) total[f] = vec<C>{};
    for (std::int64_t r = 0; r < rows;) {
      const C row_count = row[r].count;
      vec<C> sum[kStride];
      for (int f = 0; f < kStride; ++f) sum[f] = vec<C>{};
      for (; r < rows && row[r].count == row_count; ++r)
        for (std::int64_t t = (taps - 1) / kStride * kStride; t >= 0; t -= kStride) {
          const vec<C> g = load(from + row[r].start + m - t / kStride);
          sum[0] += g;
          if (kStride == 2 && t + 1 < taps) sum[kStride - 1] += g;
        }
      const C divisor = row_count * w_count;
      for (int f = 0; f < kStride; ++f) total[f] += sum[f] / divisor;
    }
  }

  // `same` rows of the result, one after the other in memory, that the listed window rows cover.
  template <int kStride, int kTaps>
  void spread_rows(const T* from, std::int64_t rows, std::int64_t same, T* to) const {
    const Axis<C> w = axes.d[2];
    const std::int64_t pad = p.window.pad[2], step = p.input.s[1];
    const C w_count = w.count[p.out[2] / 2];
    each_vector<C>(slots, [&](std::int64_t m) __attribute__((always_inline)) {
      vec<C> phase[kStride];
      gather<kStride, kTaps>(from, rows, w_count, m, phase);
      T* at = to + kStride * m - pad;
      for (std::int64_t k = 0; k < same; ++k, at += step) {
        if constexpr (kStride == 1) {
          store(at, phase[0]);
        } else {
          store(at, interleave_low(phase[0], phase[1], kEachLane<C>));
          store(at + kWidth, interleave_high(phase[0], phase[1], kEachLane<C>));
        }
      }
    });
    const Span done =
        slots.size() > 0 ? Span{kStride * slots.begin - pad, kStride * slots.end - pad} : Span{0, 0};
    each_border(done, p.in[2], [&](std::int64_t i) {
      C sum = 0;
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t o = w.cover[i].begin; o < w.cover[i].end; ++o)
          sum += load1(from + row[r].start + o) / (row[r].count * w.count[o]);
      for (std::int64_t k = 0; k < same; ++k) store1(to + k * step + i, sum);
    });
  }

  void run(const T* from, T* to, std::int64_t id, std::int64_t begin, std::int64_t end) const {
    const Window& w = p.window;
    const Span d = axes.d[0].cover[id];
    for (std::int64_t ih = begin; ih < end;) {
      const Span h = axes.d[1].cover[ih];
      const std::int64_t first = ih;
      while (ih < end && axes.d[1].cover[ih] == h) ++ih;
      std::int64_t rows = 0;
      for (std::int64_t od = d.begin; od < d.end; ++od)
        for (std::int64_t oh = h.begin; oh < h.end; ++oh)
          row[rows++] = {od * p.output.s[0] + oh * p.output.s[1], axes.d[0].count[od] * axes.d[1].count[oh]};
      T* out = to + id * p.input.s[0] + first * p.input.s[1];
      const auto spread =
          w.stride[2] == 1 ? w.kernel[2] == 3 ? &RowSpread::spread_rows<1, 3> : &RowSpread::spread_rows<1, 0>
          : w.kernel[2] == 2 ? &RowSpread::spread_rows<2, 2>
          : w.kernel[2] == 3 ? &RowSpread::spread_rows<2, 3>
                             : &RowSpread::spread_rows<2, 0>;
      (this->*spread)(from, rows, ih - first, out);
    }
  }
};

// --- both ------------------------------------------------------------------------------------------------

template <class T, class Worker>
void run_rows(const Params& p, const Worker& worker, const Strides& source, const Strides& target,
              const Dims& result, const void* from, void* to) {
  run_tasks<1>(p, worker, result, [&](const Worker& work, std::int64_t q, auto... rows) {
    work.run(static_cast<const T*>(from) + q / p.c * source.n + q % p.c * source.c,
             static_cast<T*>(to) + q / p.c * target.n + q % p.c * target.c, rows...);
  });
}

void forward_rows(const Params& p, const void* input, void* output) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    const Axes<compute_t<T>> axes = list_axes<compute_t<T>>(p);
    run_rows<T>(p, RowPool<T>{p, axes}, p.input, p.output, p.out, input, output);
  });
}

void backward_rows(const Params& p, const void* grad_output, void* grad_input) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    const Axes<compute_t<T>> axes = list_axes<compute_t<T>>(p);
    run_rows<T>(p, RowSpread<T>{p, axes, most_covers(p, axes)}, p.output, p.input, p.in, grad_output,
                grad_input);
  });
}

}  // namespace
}  // namespace convnorm::avg_pool
