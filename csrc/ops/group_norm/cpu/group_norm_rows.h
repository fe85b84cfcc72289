// Group norm where the channels are contiguous (channels_last, and N x C).
//
// An image is a matrix of inner rows by channels. A task is a slab of whole groups of one image, all of them
// up to kMostWidth channels. (Narrow slabs that fit L2 are slower: with a power of two of channels they only
// reach a part of its sets.) Vectors run over channels; sums read kGroup rows per pass over the channels, are
// kept in C for kBlock rows, then added over each group and merged in double. When there are few slabs, their
// rows are cut into chunks, whose moments are merged in order.
#pragma once

namespace convnorm::group_norm {
namespace {

inline constexpr std::int64_t kMostWidth = 512;  // its per-channel values stay in L1
inline constexpr std::int64_t kBlock = 256;      // rows summed in C: at most 4 + 256/4 additions in a row
inline constexpr int kGroup = 4;                 // rows per pass over the channels
inline constexpr int kAhead = 16;                // rows fetched ahead of the sums
inline constexpr int kAheadWrite = 4;            // rows of the output fetched ahead of the write

struct Slabs {
  std::int64_t rows, channels, depth;
  std::int64_t groups, width;  // of a slab, at most
  std::int64_t across, chunks, chunk_rows;

  explicit Slabs(const Shape& p) : rows(p.inner), channels(p.channels), depth(p.depth()) {
    across = ceil_div(p.groups, imax(1, kMostWidth / depth));
    groups = ceil_div(p.groups, across);
    across = ceil_div(p.groups, groups);
    width = groups * depth;
    chunks = chunks_of(p.batch * across, rows * width);
    chunk_rows = ceil_div(rows, chunks);
    chunks = ceil_div(rows, chunk_rows);
  }
};

// Rows [row, row + rows) of the slab that starts at `group`, of image n.
struct Tile {
  std::int64_t n, row, rows, group, groups, channel, width, chunk;
};

inline Tile tile_at(const Shape& p, const Slabs& s, std::int64_t t) {
  const std::int64_t chunk = t % s.chunks, slab = t / s.chunks % s.across, n = t / s.chunks / s.across;
  const std::int64_t group = slab * s.groups, groups = imin(s.groups, p.groups - group);
  const std::int64_t row = chunk * s.chunk_rows;
  return {n, row, imin(s.chunk_rows, s.rows - row), group, groups, group * s.depth, groups * s.depth, chunk};
}

// f(row, R as a type): groups of kGroup rows where these are `together`, then single ones.
template <int R>
struct RowCount {
  static constexpr int value = R;
};

template <class F>
CONVNORM_INLINE inline void each_group(std::int64_t rows, bool together, F f) {
  std::int64_t r = 0;
  for (; together && r + kGroup <= rows; r += kGroup) f(r, RowCount<kGroup>{});
  for (; r < rows; ++r) f(r, RowCount<1>{});
}

// Rows are written one by one unless they are short: what is stored in a row would hold up the loads of a
// later one that lies a page further on.
template <class T>
inline bool short_rows(std::int64_t channels) {
  return channels * static_cast<std::int64_t>(sizeof(T)) <= 512;
}

// Moments of the groups of one tile.
template <class T>
struct SlabStatistics {
  using C = compute_t<T>;
  std::int64_t stride, depth;
  C *shift, *s1, *s2;   // per channel, padded
  double *sum1, *sum2;  // per group
  double *mean, *m2;    // per group: the result

  static std::int64_t bytes(const Slabs& s) {
    return 3 * Arena::room<C>(s.width + kLanes<C>) + 4 * Arena::room<double>(s.groups);
  }

  SlabStatistics(const Slabs& s, Arena& arena) : stride(s.channels), depth(s.depth) {
    for (C** array : {&shift, &s1, &s2}) *array = arena.take<C>(s.width + kLanes<C>);
    for (double** array : {&sum1, &sum2, &mean, &m2}) *array = arena.take<double>(s.groups);
  }

  void sweep(const T* x, const Tile& t, std::int64_t rows) const {
    for (std::int64_t c = 0; c < t.width + kLanes<C>; ++c) s1[c] = s2[c] = 0;
    each_group(rows, true, [&](std::int64_t row, auto count) CONVNORM_INLINE {
      constexpr int R = decltype(count)::value;
      const T* from = x + row * stride;
      each_vector<C, 1>(t.width, [&](int, std::int64_t c, auto access, ivec<C> on) CONVNORM_INLINE {
        const vec<C> m = load(shift + c);
        vec<C> g1{}, g2{};
        for (int k = 0; k < R; ++k) {
          const T* at = from + k * stride + c;
          __builtin_prefetch(at + kAhead * stride);
          const vec<C> d = access.get(at) - m;
          g1 += d;
          g2 += d * d;
        }
        store(s1 + c, load(s1 + c) + masked<C>(g1, on));
        store(s2 + c, load(s2 + c) + masked<C>(g2, on));
      });
    });
    for (std::int64_t g = 0; g < t.groups; ++g) {
      double a = 0, b = 0;
      for (std::int64_t k = g * depth; k < (g + 1) * depth; ++k) a += s1[k], b += s2[k];
      sum1[g] = a, sum2[g] = b;
    }
  }

  // Again in double, for groups whose squares left float's range.
  void repair(const T* x, const Tile& t, std::int64_t rows) const {
    for (std::int64_t g = 0; g < t.groups; ++g)
      if (!in_range(static_cast<C>(sum2[g]))) repair(x, g, rows);
  }
  __attribute__((noinline)) void repair(const T* x, std::int64_t g, std::int64_t rows) const {
    double a = 0, b = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t k = g * depth; k < (g + 1) * depth; ++k) {
        const double d = static_cast<double>(load1(x + row * stride + k)) - shift[k];
        a += d, b += d * d;
      }
    }
    sum1[g] = a, sum2[g] = b;
  }

  void set_shift(std::int64_t g, C value) const {
    for (std::int64_t k = g * depth; k < (g + 1) * depth; ++k) shift[k] = value;
  }

  // The mean of some rows: enough that kBlock rows are at most 32 times as many values.
  void first_shift(const T* x, const Tile& t) const {
    for (std::int64_t c = 0; c < t.width + kLanes<C>; ++c) shift[c] = 0;
    for (std::int64_t g = 0; g < t.groups; ++g) set_shift(g, load1(x + g * depth));
    const std::int64_t rows = imin(t.rows, imax(kBlock / 32, ceil_div(32, depth)));
    sweep(x, t, rows);
    for (std::int64_t g = 0; g < t.groups; ++g) {
      const double near = shift[g * depth] + sum1[g] / static_cast<double>(rows * depth);
      if (is_finite(near)) set_shift(g, static_cast<C>(near));
    }
  }

  // x points to the tile's first value.
  void run(const T* x, const Tile& t) const {
    first_shift(x, t);
    for (std::int64_t done = 0; done < t.rows; done += kBlock) {
      const std::int64_t rows = imin(kBlock, t.rows - done);
      sweep(x + done * stride, t, rows);
      repair(x + done * stride, t, rows);
      const double n = static_cast<double>(rows * depth), before = static_cast<double>(done * depth);
      const double each = 1 / n, share = n / (n + before), weight = before * share;
      for (std::int64_t g = 0; g < t.groups; ++g) {
        const double off = sum1[g] * each, block_m2 = sum2[g] - off * sum1[g], at = shift[g * depth] + off;
        const double delta = done ? at - mean[g] : 0;
        mean[g] = done ? mean[g] + delta * share : at;
        m2[g] = (done ? m2[g] : 0) + (block_m2 < 0 ? 0 : block_m2) + delta * delta * weight;
      }
      if (done + rows == t.rows) break;
      for (std::int64_t g = 0; g < t.groups; ++g) set_shift(g, static_cast<C>(mean[g]));
    }
  }
};

template <class T>
struct RowsForward {
  using C = compute_t<T>;
  const Forward& p;
  const T* const x;
  T* const out;
  const Slabs s;
  const bool stream;

  explicit RowsForward(const Forward& params)
      : p(params),
        x(static_cast<const T*>(p.x)),
        out(static_cast<T*>(p.out)),
        s(p),
        stream(far_larger_than_caches<T>(p) && p.channels % kLanes<C> == 0) {}

  std::int64_t offset(const Tile& t) const { return (t.n * p.inner + t.row) * p.channels + t.channel; }

  void set(const Tile& t, std::int64_t g, double mean, double var) const {
    p.mean[t.n * p.groups + t.group + g] = mean;
    p.var[t.n * p.groups + t.group + g] = var;
  }

  void write(const Tile& t, Arena arena) const {
    const std::int64_t padded = t.width + kLanes<C>;
    C *center = arena.take<C>(padded), *scale = arena.take<C>(padded), *shift = arena.take<C>(padded);
    for (std::int64_t g = 0; g < t.groups; ++g) {
      const std::int64_t at = t.n * p.groups + t.group + g;
      const double r = 1 / __builtin_sqrt(p.var[at] + p.eps);
      for (std::int64_t k = g * s.depth; k < (g + 1) * s.depth; ++k) {
        const Coefficients<C> one = coefficients<C>(p, t.channel + k, p.mean[at], r);
        center[k] = one.center, scale[k] = one.scale, shift[k] = one.shift;
      }
    }
    stream&& can_stream(out + offset(t), t.width) ? write<true>(t, center, scale, shift)
                                                  : write<false>(t, center, scale, shift);
  }

  template <bool kStream>
  void write(const Tile& t, const C* centers, const C* scales, const C* shifts) const {
    const std::int64_t stride = p.channels;
    each_group(t.rows, short_rows<T>(stride), [&](std::int64_t row, auto count) CONVNORM_INLINE {
      constexpr int R = decltype(count)::value;
      const T* from = x + offset(t) + row * stride;
      T* to = out + offset(t) + row * stride;
      each_vector<C, 1, kStream>(t.width, [&](int, std::int64_t c, auto access, ivec<C>) CONVNORM_INLINE {
        const vec<C> center = load(centers + c), scale = load(scales + c), shift = load(shifts + c);
        for (int r = 0; r < R; ++r) {
          const std::int64_t i = r * stride + c;
          if constexpr (!kStream) __builtin_prefetch(to + i + kAheadWrite * stride);
          access.put(to + i, (access.get(from + i) - center) * scale + shift);
        }
      });
    });
  }

  template <class F>
  void each_tile(F f) const {
    const std::int64_t bytes = imax(SlabStatistics<T>::bytes(s), 3 * Arena::room<C>(s.width + kLanes<C>));
    const std::int64_t grain = imax(1, kGrain / (s.chunk_rows * s.width));
    parallel_for(p.batch * s.across * s.chunks, grain, [&](std::int64_t begin, std::int64_t end) {
      Arena arena{static_cast<char*>(scratch_bytes(Slot::local, bytes))};
      for (std::int64_t t = begin; t < end; ++t) f(tile_at(p, s, t), arena);
      stream_fence();
    });
  }

  void in_chunks() const {
    auto* partial =
        static_cast<Moments*>(scratch_bytes(Slot::shared, p.batch * p.groups * s.chunks * sizeof(Moments)));
    each_tile([&](const Tile& t, Arena arena) {
      const SlabStatistics<T> sums(s, arena);
      sums.run(x + offset(t), t);
      for (std::int64_t g = 0; g < t.groups; ++g)
        partial[(t.n * p.groups + t.group + g) * s.chunks + t.chunk] = {static_cast<double>(t.rows * s.depth),
                                                                        sums.mean[g], sums.m2[g]};
    });
    for (std::int64_t g = 0; g < p.batch * p.groups; ++g) {
      Moments m;
      for (std::int64_t k = 0; k < s.chunks; ++k) merge(m, partial[g * s.chunks + k]);
      p.mean[g] = m.mean, p.var[g] = m.m2 / m.count;
    }
    each_tile([&](const Tile& t, Arena arena) { write(t, arena); });
  }

  void run() const {
    if (s.chunks > 1) return in_chunks();
    const double each = 1 / static_cast<double>(p.group_values());
    each_tile([&](const Tile& t, Arena arena) {
      Arena rest = arena;
      const SlabStatistics<T> sums(s, rest);
      sums.run(x + offset(t), t);
      for (std::int64_t g = 0; g < t.groups; ++g) set(t, g, sums.mean[g], sums.m2[g] * each);
      write(t, arena);
    });
  }
};

}  // namespace
}  // namespace convnorm::group_norm
