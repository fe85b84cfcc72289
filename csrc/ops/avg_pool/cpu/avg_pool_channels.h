// Average pooling with vectors over channels: channels_last.
//
//   task     = one output row (backward: input row) of a slab of channels; its pixels one after the other, a
//              block of kUnroll vectors at a time, whose sums stay in registers over the whole window
//   backward   gathers from the windows that hold a pixel: each gradient is written once. Where all of them
//              have one divisor the sum is divided, else each term
//
// A channel count that is no multiple of the vector ends with a vector that overlaps the one before it.
#pragma once

namespace convnorm::avg_pool {
namespace {

constexpr int kUnroll = 8;

// Rows and slabs of channels of a call: few rows (global pooling) are cut, by shape alone.
struct Slabs {
  std::int64_t size, count;
};
inline Slabs channel_slabs(const Params& p, std::int64_t rows) {
  const std::int64_t size = rows < 64 ? 512 : p.c;
  return p.c < 2 * size ? Slabs{p.c, 1} : Slabs{size, p.c / size};
}
// The channels [begin, end) of a slab; the last takes the rest.
inline Span slab_channels(const Params& p, Slabs slabs, std::int64_t slab) {
  return {slab * slabs.size, slab + 1 == slabs.count ? p.c : (slab + 1) * slabs.size};
}

// f(first channel) with kUnroll, 2 or 1 vectors as a compile-time number, over all channels.
template <class C, class F>
inline __attribute__((always_inline)) void each_block(std::int64_t channels, F&& f) {
  constexpr int lanes = kLanes<C>;
  std::int64_t c = 0;
  for (; c + kUnroll * lanes <= channels; c += kUnroll * lanes) f(c, std::integral_constant<int, kUnroll>{});
  for (; c + 2 * lanes <= channels; c += 2 * lanes) f(c, std::integral_constant<int, 2>{});
  for (; c < channels; c += lanes) f(imin(c, channels - lanes), std::integral_constant<int, 1>{});
}

// --- forward ---------------------------------------------------------------------------------------------

template <int kVectors, class T, class C>
inline __attribute__((always_inline)) void add_taps(const T* from, std::int64_t taps, std::int64_t step,
                                                    vec<C>* sum) {
  for (std::int64_t t = 0; t < taps; ++t, from += step)
    for (int u = 0; u < kVectors; ++u) sum[u] += load(from + u * kLanes<C>);
}

// Row-major order; of large windows sums of 16 taps, of 16 such sums, and of those.
template <bool kLarge, int kVectors, class T, class C>
inline __attribute__((always_inline)) void sum_window(const T* from, const Row<C>* row, std::int64_t rows,
                                                      std::int64_t taps, std::int64_t step, vec<C>* sum) {
  for (int u = 0; u < kVectors; ++u) sum[u] = vec<C>{};
  if constexpr (!kLarge) {
    for (std::int64_t r = 0; r < rows; ++r) add_taps<kVectors, T, C>(from + row[r].start, taps, step, sum);
  } else {
    LongSum<C> total[kVectors];
    std::int64_t chains = 0;
    const auto finish_part = [&] {
      for (int u = 0; u < kVectors; ++u) total[u].add(sum[u]), sum[u] = vec<C>{};
    };
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t t = 0; t < taps; t += kChain) {
        vec<C> chain[kVectors];
        for (int u = 0; u < kVectors; ++u) chain[u] = vec<C>{};
        add_taps<kVectors, T, C>(from + row[r].start + t * step, imin(kChain, taps - t), step, chain);
        for (int u = 0; u < kVectors; ++u) sum[u] += chain[u];
        if (++chains % kChain == 0) finish_part();
      }
    finish_part();
    for (int u = 0; u < kVectors; ++u) sum[u] = total[u].total();
  }
}

template <bool kLarge, class T, class C = compute_t<T>>
inline void pool_row(const Params& p, const Axes<C>& axes, std::int64_t od, std::int64_t oh, Row<C>* row,
                     std::int64_t channels, const T* from, T* to) {
  const Span d = axes.d[0].inside[od], h = axes.d[1].inside[oh];
  std::int64_t rows = 0;
  for (std::int64_t id = d.begin; id < d.end; ++id)
    for (std::int64_t ih = h.begin; ih < h.end; ++ih)
      row[rows++].start = id * p.input.s[0] + ih * p.input.s[1];
  const C row_count = axes.d[0].count[od] * axes.d[1].count[oh];
  const std::int64_t step = p.input.s[2], out_step = p.output.s[2], out_w = p.out[2];
  const Axis<C> w = axes.d[2];
  for (std::int64_t ow = 0; ow < out_w; ++ow, to += out_step) {
    const Span inside = w.inside[ow];
    const C divisor = row_count * w.count[ow];
    const T* window = from + inside.begin * step;
    each_block<C>(channels, [&](std::int64_t c, auto vectors) __attribute__((always_inline)) {
      constexpr int kVectors = decltype(vectors)::value;
      vec<C> sum[kVectors];
      sum_window<kLarge, kVectors, T, C>(window + c, row, rows, inside.size(), step, sum);
      for (int u = 0; u < kVectors; ++u) store(to + c + u * kLanes<C>, sum[u] / divisor);
    });
  }
}

// Rows of the largest window.
inline std::int64_t most_rows(const Params& p) {
  std::int64_t rows = 1;
  for (int d = 0; d < 2; ++d)
    rows *= p.adaptive ? imin(p.in[d], p.in[d] / imax(p.out[d], 1) + 2) : imin(p.in[d], p.window.kernel[d]);
  return rows;
}

template <bool kLarge, class T>
void forward_channels_of(const Params& p, const T* input, T* output) {
  using C = compute_t<T>;
  const Axes<C> axes = list_axes<C>(p);
  const std::int64_t rows = p.n * p.out[0] * p.out[1];
  const Slabs slabs = channel_slabs(p, rows);
  const std::int64_t cost =
      (p.in[0] * p.in[1] * p.in[2] / imax(p.out[0] * p.out[1], 1) + p.out[2]) * slabs.size;
  parallel_for(rows * slabs.count, ceil_div(32768, cost), [&](std::int64_t begin, std::int64_t end) {
    auto* row = static_cast<Row<C>*>(scratch_bytes(Slot::local, most_rows(p) * sizeof(Row<C>)));
    for (std::int64_t task = begin; task < end; ++task) {
      const Span c = slab_channels(p, slabs, task % slabs.count);
      const std::int64_t oh = task / slabs.count % p.out[1], rest = task / slabs.count / p.out[1];
      const std::int64_t od = rest % p.out[0], n = rest / p.out[0];
      pool_row<kLarge>(p, axes, od, oh, row, c.size(), input + n * p.input.n + c.begin,
                       output + n * p.output.n + od * p.output.s[0] + oh * p.output.s[1] + c.begin);
    }
  });
}

void forward_channels(const Params& p, const void* input, void* output) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = large_windows(p) ? forward_channels_of<true, T> : forward_channels_of<false, T>;
    run(p, static_cast<const T*>(input), static_cast<T*>(output));
  });
}

// --- backward --------------------------------------------------------------------------------------------

template <int kVectors, bool kOneDivisor, class T, class C>
inline __attribute__((always_inline)) void sum_covers(const T* from, const Row<C>* row, std::int64_t rows,
                                                      Span cover, std::int64_t step, const C* w_count,
                                                      vec<C>* sum) {
  for (int u = 0; u < kVectors; ++u) sum[u] = vec<C>{};
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* g = from + row[r].start + cover.begin * step;
    for (std::int64_t ow = cover.begin; ow < cover.end; ++ow, g += step)
      for (int u = 0; u < kVectors; ++u) {
        const vec<C> x = load(g + u * kLanes<C>);
        sum[u] += kOneDivisor ? x : x / (row[r].count * w_count[ow]);
      }
  }
  if (!kOneDivisor || rows == 0 || cover.size() <= 0) return;
  const C divisor = row[0].count * w_count[cover.begin];
  for (int u = 0; u < kVectors; ++u) sum[u] /= divisor;
}

template <class C>
inline bool equal_counts(const C* count, Span cover) {
  for (std::int64_t o = cover.begin + 1; o < cover.end; ++o)
    if (count[o] != count[cover.begin]) return false;
  return true;
}

template <class T, class C = compute_t<T>>
inline void spread_row(const Params& p, const Axes<C>& axes, std::int64_t id, std::int64_t ih, Row<C>* row,
                       std::int64_t channels, const T* from, T* to) {
  const Span d = axes.d[0].cover[id], h = axes.d[1].cover[ih];
  std::int64_t rows = 0;
  bool one_row_count = true;
  for (std::int64_t od = d.begin; od < d.end; ++od)
    for (std::int64_t oh = h.begin; oh < h.end; ++oh, ++rows) {
      row[rows] = {od * p.output.s[0] + oh * p.output.s[1], axes.d[0].count[od] * axes.d[1].count[oh]};
      one_row_count &= row[rows].count == row[0].count;
    }
  const std::int64_t step = p.output.s[2], in_step = p.input.s[2], in_w = p.in[2];
  const Axis<C> w = axes.d[2];
  for (std::int64_t iw = 0; iw < in_w; ++iw, to += in_step) {
    const Span cover = w.cover[iw];
    if (iw > 0 && cover == w.cover[iw - 1]) {
      std::memcpy(to, to - in_step, channels * sizeof(T));
      continue;
    }
    const bool one_divisor = one_row_count && equal_counts(w.count, cover);
    each_block<C>(channels, [&](std::int64_t c, auto vectors) __attribute__((always_inline)) {
      constexpr int kVectors = decltype(vectors)::value;
      vec<C> sum[kVectors];
      if (one_divisor)
        sum_covers<kVectors, true, T, C>(from + c, row, rows, cover, step, w.count, sum);
      else
        sum_covers<kVectors, false, T, C>(from + c, row, rows, cover, step, w.count, sum);
      for (int u = 0; u < kVectors; ++u) store(to + c + u * kLanes<C>, sum[u]);
    });
  }
}

// Window rows that hold one input row, at most.
template <class C>
inline std::int64_t most_covers(const Params& p, const Axes<C>& axes) {
  std::int64_t rows = 1;
  for (int d = 0; d < 2; ++d) {
    std::int64_t most = 0;
    for (std::int64_t i = 0; i < p.in[d]; ++i) most = imax(most, axes.d[d].cover[i].size());
    rows *= most;
  }
  return rows;
}

template <class T>
void backward_channels_of(const Params& p, const T* grad_output, T* grad_input) {
  using C = compute_t<T>;
  const Axes<C> axes = list_axes<C>(p);
  const std::int64_t rows = p.n * p.in[0] * p.in[1], covers = most_covers(p, axes);
  const Slabs slabs = channel_slabs(p, rows);
  const std::int64_t grain = ceil_div(32768, p.in[2] * slabs.size);
  parallel_for(rows * slabs.count, grain, [&](std::int64_t begin, std::int64_t end) {
    auto* row = static_cast<Row<C>*>(scratch_bytes(Slot::local, covers * sizeof(Row<C>)));
    for (std::int64_t task = begin; task < end; ++task) {
      const Span c = slab_channels(p, slabs, task % slabs.count);
      const std::int64_t ih = task / slabs.count % p.in[1], rest = task / slabs.count / p.in[1];
      const std::int64_t id = rest % p.in[0], n = rest / p.in[0];
      T* to = grad_input + n * p.input.n + id * p.input.s[0] + ih * p.input.s[1] + c.begin;
      // The same row as the one above, where that is this worker's own; the pixels of a row are one run.
      const Span* cover = axes.d[1].cover + ih;
      if (task > begin && slabs.count == 1 && ih > 0 && cover[0] == cover[-1])
        std::memcpy(to, to - p.input.s[1], p.in[2] * p.c * sizeof(T));
      else
        spread_row(p, axes, id, ih, row, c.size(), grad_output + n * p.output.n + c.begin, to);
    }
  });
}

void backward_channels(const Params& p, const void* grad_output, void* grad_input) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    backward_channels_of(p, static_cast<const T*>(grad_output), static_cast<T*>(grad_input));
  });
}

}  // namespace
}  // namespace convnorm::avg_pool
