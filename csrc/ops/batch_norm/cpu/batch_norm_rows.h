// Batch norm where the channels are contiguous (channels_last, and fully connected N x C).
//
// x is a matrix of outer*inner rows by channels, cut by shape alone into tiles of at most kWidth channels by
// enough rows; vectors run over channels. Tiles are summed, merged in order of rows, and written in a second
// sweep, which takes them backwards, from what is still in cache.
//
// Sums read four rows per pass, so that shifts and accumulators are loaded and stored once for four; with
// more rows their lines fall on the same sets of L1 (a row of 1024 floats is a page). The four are a quarter
// of the block apart: from memory, four streams keep half as many more bytes in flight than one. Sums are
// float over kBlock rows, then merged in double. Operands that are not rows are gathered.
#pragma once

namespace convnorm::batch_norm {
namespace {

// Channels of a tile: their values stay in L1, and their coefficients are one table.
inline constexpr std::int64_t kWidth = 512;
inline constexpr std::int64_t kBlock = 256;     // rows summed in float: at most 4 + 256/4 additions in a row
inline constexpr int kGroup = 4;                // rows summed per pass over the channels
inline constexpr int kPair = 2;                 // rows written per pass
inline constexpr std::int64_t kAhead = 512;     // elements fetched ahead of the sums, in each row
inline constexpr std::int64_t kFirstRows = 16;  // rows that give the first shift
inline constexpr std::int64_t kTile = 64 * 1024;  // elements of a tile ...
inline constexpr std::int64_t kLeastTile =
    32 * 1024;  // ... or so few when that makes no more than kTiles tiles
inline constexpr std::int64_t kTiles = 16;
inline constexpr std::int64_t kColumnGrain = 2;  // tables of coefficients worth a thread's attention

struct Rows {
  std::int64_t rows, channels;
  std::int64_t width;         // channels of a tile
  std::int64_t down, across;  // tiles
  std::int64_t ahead;         // rows fetched ahead

  explicit Rows(const NormView& x) : rows(x.values()), channels(x.channels) {
    width = ceil_div(ceil_div(channels, ceil_div(channels, kWidth)), 16) * 16;
    across = ceil_div(channels, width);
    width = imin(width, channels);
    const std::int64_t least = imin(ceil_div(kTiles, across), rows * width / kLeastTile);
    down = imax(least, ceil_div(rows, imax(kBlock, kTile / width)));
    ahead = imax(1, kAhead / width);
  }
  std::int64_t first_row(std::int64_t i) const { return rows * i / down; }
  std::int64_t grain() const { return imax(1, kGrain * down / (rows * width)); }
};

struct Tile {
  std::int64_t row, rows, channel, width;
};

inline Tile tile_at(const Rows& g, std::int64_t t) {
  const std::int64_t i = t / g.across, channel = t % g.across * g.width;
  return {g.first_row(i), g.first_row(i + 1) - g.first_row(i), channel, imin(g.width, g.channels - channel)};
}

template <int R>
struct RowCount {
  static constexpr int value = R;
};

// f(row, joined, rows as a type): pairs of rows, or of `joined` rows that follow each other in memory and are
// walked as one, then what is left. A line that is streamed must be written in one go: where it is more than
// a vector, rows do not come in pairs.
template <class F>
CONVNORM_INLINE inline void each_row(const Tile& t, bool stream, std::int64_t joined, F f) {
  const bool pairs = !stream || CONVNORM_VECTOR_BYTES == 64;
  std::int64_t row = t.row;
  const std::int64_t end = t.row + t.rows;
  for (; pairs && row + kPair * joined <= end; row += kPair * joined) f(row, joined, RowCount<kPair>{});
  for (; row + joined <= end; row += joined) f(row, joined, RowCount<1>{});
  for (; row < end; ++row) f(row, std::int64_t{1}, RowCount<1>{});
}

// Elements of several rows: pointer and distance from one to the next.
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

  // Rows row, row + step, ...
  RowGroup<T> get(std::int64_t row, std::int64_t step, std::int64_t rows, std::int64_t channel,
                  std::int64_t width, T* tile) const {
    const T* base = static_cast<const T*>(v.data) + channel * v.channel_stride;
    if (stride >= 0) return {base + row * stride, step * stride};
    gather(base, row, step, rows, width, tile);
    return {tile, width};
  }

 private:
  __attribute__((noinline)) void gather(const T* base, std::int64_t row, std::int64_t step, std::int64_t rows,
                                        std::int64_t width, T* tile) const {
    for (std::int64_t k = 0; k < rows; ++k) {
      const std::int64_t r = row + k * step;
      const T* from = base + r / v.inner * v.outer_stride + inner_offset(v, r % v.inner);
      for (std::int64_t c = 0; c < width; ++c) tile[k * width + c] = from[c * v.channel_stride];
    }
  }
};

// How many rows of a tile are walked as one: as many as a table of coefficients serves, where all operands
// are dense. Rows of 64 channels would otherwise take as long to begin as to do.
template <class... Source>
std::int64_t rows_joined(const Rows& g, const Source&... of) {
  const bool dense = ((!of.v.data || of.stride == g.channels) && ...);
  return dense && g.across == 1 ? imax(1, imin(kWidth / g.channels, g.rows / g.down)) : 1;
}

// Whether the vector of this way is the first in its cache line, where tiles start with one.
template <class T>
constexpr bool starts_line(int way) {
  return way == kAlone || way * kLanes<compute_t<T>> * sizeof(T) % 64 == 0;
}

// f(row, step, rows as a type): kGroup rows a step apart, then single ones.
template <class F>
CONVNORM_INLINE inline void each_group(std::int64_t row, std::int64_t rows, F f) {
  const std::int64_t step = rows / kGroup;
  for (std::int64_t r = 0; r < step; ++r) f(row + r, step, RowCount<kGroup>{});
  for (std::int64_t r = kGroup * step; r < rows; ++r) f(row + r, std::int64_t{0}, RowCount<1>{});
}

// Statistics of one tile: mean and M2 per channel.
template <class T>
struct RowStatistics {
  using C = compute_t<T>;
  static constexpr std::int64_t kPitch =
      kWidth + 64 / sizeof(C);  // arrays a page apart would share sets of L1
  const Rows& g;
  const RowSource<T>& x;
  T* gathered;
  C* shift;
  double* sums;  // sum of d, then of d^2

  static std::int64_t bytes() {
    return kGroup * kWidth * sizeof(T) + 3 * kPitch * sizeof(C) + 2 * kPitch * sizeof(double);
  }

  RowStatistics(const Rows& rows, const RowSource<T>& source, Arena& arena)
      : g(rows),
        x(source),
        gathered(arena.take<T>(kGroup * kWidth)),
        shift(arena.take<C>(3 * kPitch)),
        sums(arena.take<double>(2 * kPitch)) {}

  // s: shift, sum of d and sum of d^2, kPitch apart.
  void add_rows(const Tile& t, std::int64_t row, std::int64_t rows, C* s) const {
    const std::int64_t ahead = g.ahead * imax(0, x.stride);
    each_group(row, rows, [&](std::int64_t r, std::int64_t step, auto count) CONVNORM_INLINE {
      constexpr int R = decltype(count)::value;
      const auto from = x.get(r, step, R, t.channel, t.width, gathered);
      const T* const data = from.data;
      const std::int64_t stride = from.stride;
      each_vector<C>(t.width, [&](int way, std::int64_t c, auto access, ivec<C> on) CONVNORM_INLINE {
        const vec<C> m = load(s + c);
        vec<C> g1{}, g2{};
        for (int k = 0; k < R; ++k) {
          const T* at = data + k * stride + c;
          if (starts_line<T>(way)) __builtin_prefetch(at + ahead);
          const vec<C> d = access.get(at) - m;
          g1 += d;
          g2 += d * d;
        }
        store(s + kPitch + c, load(s + kPitch + c) + masked<C>(g1, on));
        store(s + 2 * kPitch + c, load(s + 2 * kPitch + c) + masked<C>(g2, on));
      });
    });
  }

  void sweep(const Tile& t, std::int64_t row, std::int64_t rows) const {
    C *s1 = shift + kPitch, *s2 = s1 + kPitch;
    for (std::int64_t c = 0; c < t.width; c += kLanes<C>) {
      store(s1 + c, vec<C>{});
      store(s2 + c, vec<C>{});
    }
    add_rows(t, row, rows, shift);
    ivec<C> good = ivec<C>{} - 1;
    each_vector<C>(t.width, [&](int, std::int64_t c, auto, ivec<C> on)
                                CONVNORM_INLINE { good &= in_range(load(s2 + c)) | ~on; });
    each_channels(t.width, [&](std::int64_t c, std::int64_t) CONVNORM_INLINE {
      store(sums + c, load_doubles(s1 + c));
      store(sums + kPitch + c, load_doubles(s2 + c));
    });
    if (!all_lanes(good)) repair(t, row, rows);
  }

  // Again in double, for the vectors of channels whose squares left float's range.
  __attribute__((noinline)) void repair(const Tile& t, std::int64_t row, std::int64_t rows) const {
    typedef double W __attribute__((vector_size(kLanes<C> * 8)));
    for (std::int64_t c = 0; c < t.width; c += kLanes<C>) {
      const std::int64_t width = imin(kLanes<C>, t.width - c);
      bool good = true;
      for (std::int64_t k = 0; k < width; ++k) good &= in_range(shift[2 * kPitch + c + k]);
      if (good) continue;
      const W m = __builtin_convertvector(load(shift + c), W);
      W w1{}, w2{};
      for (std::int64_t r = row; r < row + rows; ++r) {
        const T* from = x.get(r, 0, 1, t.channel + c, width, gathered).data;
        const W d = __builtin_convertvector(width == kLanes<C> ? load(from) : load_n(from, width), W) - m;
        w1 += d;
        w2 += d * d;
      }
      __builtin_memcpy(sums + c, &w1, sizeof(W));
      __builtin_memcpy(sums + kPitch + c, &w2, sizeof(W));
    }
  }

  void first_shift(const Tile& t) const {
    const T* first = x.get(t.row, 0, 1, t.channel, t.width, gathered).data;
    each_vector<C>(t.width, [&](int, std::int64_t c, auto access, ivec<C>)
                                CONVNORM_INLINE { store(shift + c, access.get(first + c)); });
    const std::int64_t rows = imin(kFirstRows, t.rows);
    sweep(t, t.row, rows);
    const double n = static_cast<double>(rows);
    each_channels(t.width, [&](std::int64_t c, std::int64_t) CONVNORM_INLINE {
      const Doubles value = load_doubles(shift + c), middle = value + load(sums + c) / n;
      store_doubles(shift + c, middle - middle == 0 ? middle : value);
    });
  }

  // The last block of `rows` rows joins the `done` before it.
  void merge_block(const Tile& t, std::int64_t done, std::int64_t rows, double* mean, double* m2) const {
    const double n = static_cast<double>(rows), before = static_cast<double>(done);
    const double share = n / (n + before), weight = before * share;
    each_channels(t.width, [&](std::int64_t c, std::int64_t lanes) CONVNORM_INLINE {
      const Doubles s1 = load(sums + c), off = s1 / n, middle = load_doubles(shift + c) + off;
      const Doubles block = vmax(Doubles{}, load(sums + kPitch + c) - off * s1);  // NaN stays NaN
      const Doubles old = done ? load_channels(mean + c, lanes) : middle, delta = middle - old;
      const Doubles total = done ? load_channels(m2 + c, lanes) : Doubles{};
      const Doubles merged = old + delta * share;
      store_channels(mean + c, merged, lanes);
      store_channels(m2 + c, total + block + delta * delta * weight, lanes);
      store_doubles(shift + c, merged);
    });
  }

  void run(const Tile& t, double* mean, double* m2) const {
    first_shift(t);
    for (std::int64_t done = 0; done < t.rows; done += kBlock) {
      const std::int64_t rows = imin(kBlock, t.rows - done);
      sweep(t, t.row + done, rows);
      merge_block(t, done, rows, mean, m2);
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
  const std::int64_t joined;

  explicit RowsForward(const Forward& params)
      : p(params),
        g(p.x),
        x(p.x),
        residual(p.residual),
        stream(worth_streaming<T>(p, kResidual ? 3 : 2) && g.channels % kLanes<C> == 0),
        joined(rows_joined(g, x, residual)) {}

  // Moments of `count` channels from those of their tiles, in order of rows; partial: [down][mean, M2][ld].
  void merge_tiles(const double* partial, std::int64_t ld, std::int64_t first, std::int64_t count) const {
    each_channels(count, [&](std::int64_t i, std::int64_t lanes) CONVNORM_INLINE {
      Doubles mean = load_channels(partial + i, lanes), m2 = load_channels(partial + ld + i, lanes);
      for (std::int64_t tile = 1; tile < g.down; ++tile) {
        const double before = static_cast<double>(g.first_row(tile));
        const double after = static_cast<double>(g.first_row(tile + 1)), share = (after - before) / after;
        const double* from = partial + 2 * tile * ld + i;
        const Doubles delta = load_channels(from, lanes) - mean;
        mean += delta * share;
        m2 += load_channels(from + ld, lanes) + delta * delta * (before * share);
      }
      store_channels(p.mean + first + i, mean, lanes);
      store_channels(p.var + first + i, m2 / static_cast<double>(g.rows), lanes);
    });
  }

  // R times `rows` rows from `row` on; k: the tile's table.
  template <int R>
  void normalise_rows(const C* k, const Tile& t, std::int64_t row, std::int64_t rows, T* gathered) const {
    constexpr std::int64_t kPitch = Coefficients<C>::kPitch;
    const std::int64_t width = rows * t.width;
    const auto from = x.get(row, rows, R, t.channel, t.width, gathered);
    RowGroup<T> add{};
    if constexpr (kResidual) add = residual.get(row, rows, R, t.channel, t.width, gathered + kPair * kWidth);
    const T *const in = from.data, *const more = add.data;
    const std::int64_t in_stride = from.stride, more_stride = add.stride;
    const std::int64_t ld = rows * g.channels;
    T* const to = static_cast<T*>(p.out.data) + row * g.channels + t.channel;
    each_vector<C>(width, stream && can_stream(to, width),
                   [&](int, std::int64_t c, auto access, ivec<C>) CONVNORM_INLINE {
                     const vec<C> center = load(k + c), scale = load(k + kPitch + c),
                                  shift = load(k + 2 * kPitch + c);
                     for (int r = 0; r < R; ++r) {
                       vec<C> y = (access.get(in + r * in_stride + c) - center) * scale + shift;
                       if constexpr (kResidual) y += access.get(more + r * more_stride + c);
                       if constexpr (kRelu) y = relu(y);
                       access.put(to + r * ld + c, y);
                     }
                   });
  }

  void normalise(const Coefficients<C>& k, const Tile& t, T* gathered) const {
    each_row(t, stream, joined, [&](std::int64_t row, std::int64_t rows, auto count) {
      normalise_rows<decltype(count)::value>(k.at, t, row, rows, gathered);
    });
  }

  void tile_statistics(double* partial) const {
    parallel_for(g.down * g.across, g.grain(), [&](std::int64_t begin, std::int64_t end) {
      Arena arena{static_cast<char*>(scratch_bytes(Slot::local, RowStatistics<T>::bytes()))};
      const RowStatistics<T> sums(g, x, arena);
      for (std::int64_t i = begin; i < end; ++i) {
        const Tile t = tile_at(g, i);
        double* mean = partial + 2 * (i / g.across) * g.channels + t.channel;
        sums.run(t, mean, mean + g.channels);
      }
    });
  }

  void run() const {
    const std::int64_t partial_size = p.train ? 2 * g.down * g.channels : 0;
    Arena arena{static_cast<char*>(
        scratch_bytes(Slot::shared, Coefficients<C>::bytes(g.across) + partial_size * 8 + 64))};
    const Coefficients<C> k(arena, g.across);
    double* partial = arena.take<double>(partial_size);
    if (p.train) tile_statistics(partial);
    parallel_for(g.across, kColumnGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const Tile t = tile_at(g, i);
        if (p.train) merge_tiles(partial + t.channel, g.channels, t.channel, t.width);
        forward_coefficients(p, t.channel, t.width, k.table(i));
        k.table(i).repeat(3, t.width, joined);
      }
    });
    if (!p.out.data) return;
    parallel_for(g.down * g.across, g.grain(), [&](std::int64_t begin, std::int64_t end) {
      T* gathered = static_cast<T*>(scratch_bytes(Slot::local, 2 * kPair * kWidth * sizeof(T)));
      for (std::int64_t i = end - 1; i >= begin; --i)
        normalise(k.table(i % g.across), tile_at(g, i), gathered);
      stream_fence();
    });
  }
};

}  // namespace
}  // namespace convnorm::batch_norm
