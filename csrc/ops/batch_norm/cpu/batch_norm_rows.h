// Batch norm where the channels are contiguous (channels_last, and fully connected N x C).
//
// x is a matrix of outer*inner rows by channels. Tasks are fixed tiles of it, at most kWidth channels by
// enough rows; vectors run over channels. Sums read kGroup rows per pass, so that shifts and accumulators are
// loaded and stored once per group; with more rows their lines fall on the same sets of L1 (a row of 1024
// floats is a page). Sums are float over kBlock rows, then merged in double; tiles are merged in order of
// rows. The second sweep writes row after row, and takes the tiles backwards, from what is still in cache.
// Operands that are not rows are gathered.
#pragma once

namespace convnorm::batch_norm {
namespace {

inline constexpr std::int64_t kWidth = 512;     // channels of a tile: its per-channel values stay in L1
inline constexpr std::int64_t kBlock = 256;     // rows summed in float: at most 4 + 256/4 additions in a row
inline constexpr int kGroup = 4;                // rows summed per pass over the channels
inline constexpr int kAhead = 16;               // rows fetched ahead of the sums; measured
inline constexpr std::int64_t kFirstRows = 32;  // rows that give the first shift
inline constexpr std::int64_t kTile = 64 * 1024;  // elements of a tile

struct Rows {
  std::int64_t rows, channels;
  std::int64_t tile_rows, down, across;  // tiles

  explicit Rows(const NormView& x) : rows(x.outer * x.inner), channels(x.channels) {
    across = ceil_div(channels, kWidth);
    tile_rows = imax(kBlock, kTile / imin(channels, kWidth) / kBlock * kBlock);
    down = ceil_div(rows, tile_rows);
  }
};

struct Tile {
  std::int64_t row, rows, channel, width;
};

inline Tile tile_at(const Rows& g, std::int64_t t) {
  const std::int64_t row = t / g.across * g.tile_rows, channel = t % g.across * kWidth;
  return {row, imin(g.tile_rows, g.rows - row), channel, imin(kWidth, g.channels - channel)};
}

// Elements of R consecutive rows: pointer and distance between rows.
template <class T>
struct RowGroup {
  const T* data;
  std::int64_t stride;
};

template <class T>
struct RowSource {
  const NormView& v;
  std::int64_t stride;  // -1: gathered

  explicit RowSource(const NormView& view) : v(view), stride(view.data ? row_stride(view) : 0) {}

  RowGroup<T> get(std::int64_t row, std::int64_t rows, std::int64_t channel, std::int64_t width,
                  T* tile) const {
    const T* base = static_cast<const T*>(v.data) + channel * v.channel_stride;
    if (stride >= 0) return {base + row * stride, stride};
    gather(base, row, rows, width, tile);
    return {tile, width};
  }

 private:
  __attribute__((noinline)) void gather(const T* base, std::int64_t row, std::int64_t rows,
                                        std::int64_t width, T* tile) const {
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* from = base + (row + r) / v.inner * v.outer_stride + inner_offset(v, (row + r) % v.inner);
      for (std::int64_t c = 0; c < width; ++c) tile[r * width + c] = from[c * v.channel_stride];
    }
  }
};

// f(row, rows as a type): groups of R rows, then single ones.
template <int R>
struct RowCount {
  static constexpr int value = R;
};

template <int R, class F>
CONVNORM_INLINE inline void each_group(std::int64_t row, std::int64_t rows, F f) {
  std::int64_t r = 0;
  for (; r + R <= rows; r += R) f(row + r, RowCount<R>{});
  for (; R > 1 && r < rows; ++r) f(row + r, RowCount<1>{});
}

// Coefficients of all channels, one array per coefficient, padded to whole vectors.
template <class C>
struct RowCoefficients {
  C *center, *inv, *rest, *scale, *shift, *slope, *along, *level;
  double* mean;

  static std::int64_t bytes(std::int64_t channels) {
    return (channels + 64) * static_cast<std::int64_t>(8 * sizeof(C) + sizeof(double));
  }

  RowCoefficients(Arena& arena, std::int64_t channels) {
    for (C** array : {&center, &inv, &rest, &scale, &shift, &slope, &along, &level})
      *array = arena.take<C>(channels + kLanes<C>);
    mean = arena.take<double>(channels + kLanes<C>);
  }
  void set(std::int64_t c, const Coefficients<C>& k) const {
    center[c] = k.center, inv[c] = k.inv, rest[c] = k.rest, scale[c] = k.scale, shift[c] = k.shift;
  }
  void set(std::int64_t c, const Slopes<C>& k) const {
    slope[c] = k.slope, along[c] = k.along, level[c] = k.level;
  }
};

// Statistics of one tile: mean and M2 per channel.
template <class T>
struct RowStatistics {
  using C = compute_t<T>;
  const RowSource<T>& x;
  T* gathered;
  C *shift, *s1, *s2;
  double *sum1, *sum2;

  static std::int64_t bytes() {
    return kGroup * kWidth * sizeof(T) + 3 * (kWidth + 64) * sizeof(C) + 2 * (kWidth + 64) * 8;
  }

  RowStatistics(const RowSource<T>& source, Arena arena)
      : x(source),
        gathered(arena.take<T>(kGroup * kWidth)),
        shift(arena.take<C>(kWidth + kLanes<C>)),
        s1(arena.take<C>(kWidth + kLanes<C>)),
        s2(arena.take<C>(kWidth + kLanes<C>)),
        sum1(arena.take<double>(kWidth + kLanes<C>)),
        sum2(arena.take<double>(kWidth + kLanes<C>)) {}

  void sweep(const Tile& t, std::int64_t row, std::int64_t rows) const {
    for (std::int64_t c = 0; c < t.width + kLanes<C>; ++c) s1[c] = s2[c] = 0;
    each_group<kGroup>(row, rows, [&](std::int64_t r, auto count) CONVNORM_INLINE {
      constexpr int R = decltype(count)::value;
      const auto from = x.get(r, R, t.channel, t.width, gathered);
      each_vector<C, 1>(t.width, false, [&](int, std::int64_t c, auto access, ivec<C> on) CONVNORM_INLINE {
        const vec<C> m = load(shift + c);
        vec<C> g1{}, g2{};
        for (int k = 0; k < R; ++k) {
          const T* at = from.data + k * from.stride + c;
          __builtin_prefetch(at + kAhead * from.stride);
          const vec<C> d = access.get(at) - m;
          g1 += d;
          g2 += d * d;
        }
        store(s1 + c, load(s1 + c) + masked<C>(g1, on));
        store(s2 + c, load(s2 + c) + masked<C>(g2, on));
      });
    });
    bool good = true;
    for (std::int64_t c = 0; c < t.width; ++c) {
      sum1[c] = s1[c];
      sum2[c] = s2[c];
      good &= in_range(s2[c]);
    }
    if (!good) repair(t, row, rows);
  }

  // Again in double, for the vectors of channels whose squares left float's range.
  __attribute__((noinline)) void repair(const Tile& t, std::int64_t row, std::int64_t rows) const {
    typedef double W __attribute__((vector_size(kLanes<C> * 8)));
    for (std::int64_t c = 0; c < t.width; c += kLanes<C>) {
      const std::int64_t width = imin(kLanes<C>, t.width - c);
      bool good = true;
      for (std::int64_t k = 0; k < width; ++k) good &= in_range(s2[c + k]);
      if (good) continue;
      const W m = __builtin_convertvector(load(shift + c), W);
      W w1{}, w2{};
      for (std::int64_t r = row; r < row + rows; ++r) {
        const T* from = x.get(r, 1, t.channel + c, width, gathered).data;
        const W d = __builtin_convertvector(width == kLanes<C> ? load(from) : load_n(from, width), W) - m;
        w1 += d;
        w2 += d * d;
      }
      __builtin_memcpy(sum1 + c, &w1, sizeof(W));
      __builtin_memcpy(sum2 + c, &w2, sizeof(W));
    }
  }

  void first_shift(const Tile& t) const {
    const T* first = x.get(t.row, 1, t.channel, t.width, gathered).data;
    for (std::int64_t c = 0; c < t.width; ++c) shift[c] = load1(first + c);
    const std::int64_t rows = imin(kFirstRows, t.rows);
    sweep(t, t.row, rows);
    for (std::int64_t c = 0; c < t.width; ++c) {
      const double mean = shift[c] + sum1[c] / static_cast<double>(rows);
      if (is_finite(mean)) shift[c] = static_cast<C>(mean);
    }
  }

  void run(const Tile& t, double* mean, double* m2) const {
    for (std::int64_t c = 0; c < t.width + kLanes<C>; ++c) shift[c] = 0;
    first_shift(t);
    for (std::int64_t done = 0; done < t.rows; done += kBlock) {
      const std::int64_t rows = imin(kBlock, t.rows - done);
      sweep(t, t.row + done, rows);
      const double n = static_cast<double>(rows), before = static_cast<double>(done);
      const double share = n / (n + before), weight = before * share;
      for (std::int64_t c = 0; c < t.width; ++c) {
        const double off = sum1[c] / n, block_m2 = sum2[c] - off * sum1[c];
        const double delta = done ? shift[c] + off - mean[c] : 0;
        mean[c] = done ? mean[c] + delta * share : shift[c] + off;
        m2[c] = (done ? m2[c] : 0) + (block_m2 < 0 ? 0 : block_m2) + delta * delta * weight;
        shift[c] = static_cast<C>(mean[c]);
      }
    }
  }
};

template <class T, bool kResidual, bool kRelu>
struct RowsForward {
  using C = compute_t<T>;
  const Forward& p;
  const Rows g;
  const RowSource<T> x, residual;
  const bool stream;

  explicit RowsForward(const Forward& params)
      : p(params),
        g(p.x),
        x(p.x),
        residual(p.residual),
        stream(g.rows * g.channels * static_cast<std::int64_t>(sizeof(T)) >= kStreamBytes &&
               p.out.channels % kLanes<C> == 0) {}

  void statistics() const {
    auto* partial =
        static_cast<double*>(scratch_bytes(Slot::shared, 2 * g.down * g.channels * sizeof(double)));
    parallel_for(g.down * g.across, 1, [&](std::int64_t begin, std::int64_t end) {
      const RowStatistics<T> sums(
          x, Arena{static_cast<char*>(scratch_bytes(Slot::local, RowStatistics<T>::bytes()))});
      for (std::int64_t i = begin; i < end; ++i) {
        const Tile t = tile_at(g, i);
        double* mean = partial + 2 * (i / g.across) * g.channels + t.channel;
        sums.run(t, mean, mean + g.channels);
      }
    });
    parallel_for(g.channels, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = begin; c < end; ++c) {
        Moments total;
        for (std::int64_t i = 0; i < g.down; ++i) {
          const double rows = static_cast<double>(imin(g.tile_rows, g.rows - i * g.tile_rows));
          const double* mean = partial + 2 * i * g.channels + c;
          merge(total, {rows, mean[0], mean[g.channels]});
        }
        p.mean[c] = total.mean;
        p.var[c] = total.m2 / total.count;
      }
    });
  }

  void normalise(const RowCoefficients<C>& k, const Tile& t, T* gathered) const {
    each_group<1>(t.row, t.rows, [&](std::int64_t row, auto count) CONVNORM_INLINE {
      constexpr int R = decltype(count)::value;
      const auto from = x.get(row, R, t.channel, t.width, gathered);
      RowGroup<T> add{};
      if constexpr (kResidual) add = residual.get(row, R, t.channel, t.width, gathered + kGroup * kWidth);
      T* to = static_cast<T*>(p.out.data) + row * g.channels + t.channel;
      each_vector<C, 1>(t.width, stream && can_stream(to, t.width),
                        [&](int, std::int64_t c, auto access, ivec<C>) CONVNORM_INLINE {
                          const vec<C> center = load(k.center + t.channel + c);
                          const vec<C> scale = load(k.scale + t.channel + c),
                                       shift = load(k.shift + t.channel + c);
                          for (int r = 0; r < R; ++r) {
                            vec<C> y = (access.get(from.data + r * from.stride + c) - center) * scale + shift;
                            if constexpr (kResidual) y += access.get(add.data + r * add.stride + c);
                            if constexpr (kRelu) y = relu(y);
                            access.put(to + r * g.channels + c, y);
                          }
                        });
    });
  }

  void run() const {
    if (p.train) statistics();
    Arena arena{static_cast<char*>(scratch_bytes(Slot::shared, RowCoefficients<C>::bytes(g.channels)))};
    const RowCoefficients<C> k(arena, g.channels);
    for (std::int64_t c = 0; c < g.channels; ++c) k.set(c, coefficients<C>(p, c));
    parallel_for(g.down * g.across, 1, [&](std::int64_t begin, std::int64_t end) {
      T* gathered = static_cast<T*>(scratch_bytes(Slot::local, 2 * kGroup * kWidth * sizeof(T)));
      for (std::int64_t i = end - 1; i >= begin; --i) normalise(k, tile_at(g, i), gathered);
      stream_fence();
    });
  }
};

}  // namespace
}  // namespace convnorm::batch_norm
