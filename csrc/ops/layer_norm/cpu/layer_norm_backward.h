// Backward of layer norm: per row two sums (weight g, and weight g xhat), then one write; the same
// sweep adds g and g xhat to the sums over rows.
//
// Rows: a task is a tile of rows; both sweeps of a group of kGroup rows follow each other while the rows are
// in L1, and the second fetches the next group. Columns (long rows): first the sums of all rows, then tiles
// of kColumns columns by all rows. Sums over rows are kept in C for kFlush rows, then added to double; tiles
// of rows are merged in order.
#pragma once

namespace convnorm::layer_norm {
namespace {

// Rows per pass over the sums over rows: what registers hold.
inline constexpr int kGroup = CONVNORM_VECTOR_BYTES == 64 ? 4 : 2;
inline constexpr std::int64_t kAtOnce = 8;  // rows whose sums are taken before the first is written ...
inline constexpr std::int64_t kAtOnceSize =
    2048;                                       // ... and their elements: x and grad_output fill half of L1
inline constexpr std::int64_t kFlush = 64;      // rows summed in C
inline constexpr std::int64_t kLeastRows = 16;  // of a tile
inline constexpr std::int64_t kColumns = 1024;  // of a tile

// xhat = (x - center) inv + rest;  grad_x = weight g inv - level - xhat along.
template <class C>
struct Slopes {
  C center, inv, rest, along, level;
};

template <int R>
struct RowCount {
  static constexpr int value = R;
};

template <class T, bool kSums>
struct RowsBackward {
  using C = compute_t<T>;
  const Backward& p;
  const T *const x, *const grad;
  T* const grad_input;
  const bool stream;
  const double per_value;
  const C* weight = nullptr;

  explicit RowsBackward(const Backward& params)
      : p(params),
        x(static_cast<const T*>(p.x)),
        grad(static_cast<const T*>(p.grad_output)),
        grad_input(static_cast<T*>(p.grad_input)),
        stream(p.rows * p.size * static_cast<std::int64_t>(sizeof(T)) >= kStreamBytes),
        per_value(1 / static_cast<double>(p.size)) {}

  struct RowSums {
    double g = 0, dot = 0;
  };

  // Sums of weight g and of weight g (x - center).
  CONVNORM_INLINE inline RowSums segment_sums(std::int64_t at, std::int64_t begin, std::int64_t length,
                                              C center) const {
    const T *from = x + at + begin, *g = grad + at + begin;
    const C* w = weight + begin;
    vec<C> s[kAlone] = {}, dot[kAlone] = {};
    each_vector<C>(length, [&](int way, std::int64_t i, auto access, ivec<C> on) CONVNORM_INLINE {
      const vec<C> wg = masked<C>(access.get(g + i) * access.get(w + i), on);
      s[way % kAlone] += wg;
      dot[way % kAlone] += wg * (access.get(from + i) - center);
    });
    return {static_cast<double>(fold<kLanes<C>, C>((s[0] + s[1]) + (s[2] + s[3]))),
            static_cast<double>(fold<kLanes<C>, C>((dot[0] + dot[1]) + (dot[2] + dot[3])))};
  }

  using Standard = Standardise<C, kFlush>;

  Slopes<C> slopes(std::int64_t row, const Standard& k, std::int64_t which) const {
    RowSums total;
    for (std::int64_t i = 0; i < p.size && grad_input; i += kSegment) {
      const RowSums part = segment_sums(row * p.size, i, imin(kSegment, p.size - i), k.center[which]);
      total.g += part.g, total.dot += part.dot;
    }
    const C inv = p.size == 1 ? C(0) : k.inv[which];  // xhat of one value is zero, and so is its gradient
    const double share = inv * per_value, along = total.dot * inv + total.g * k.rest[which];
    return {k.center[which], inv, k.rest[which], static_cast<C>(along * share),
            static_cast<C>(total.g * share)};
  }

  // Columns [begin, begin + length) of R rows from `row`; b holds their slopes, sums the running g xhat and
  // g. `ahead` is how far the rows lie that come next.
  template <int R, bool kInput, bool kStream>
  CONVNORM_INLINE inline void combine(const Slopes<C>* b, std::int64_t row, std::int64_t begin,
                                      std::int64_t length, C* const (&sums)[2], std::int64_t ahead) const {
    const std::int64_t at = row * p.size + begin, size = p.size;
    const T *from = x + at, *g = grad + at;
    T* to = kInput ? grad_input + at : nullptr;
    const C* w = weight + begin;
    C *const to_weight = sums[0], *const to_bias = sums[1];
    vec<C> center[R], inv[R], rest[R], along[R], level[R];
    for (int r = 0; r < R; ++r) {
      center[r] = splat<C>(b[r].center), inv[r] = splat<C>(b[r].inv), rest[r] = splat<C>(b[r].rest);
      along[r] = splat<C>(b[r].along), level[r] = splat<C>(b[r].level);
    }
    each_vector<C, 1, kStream>(length, [&](int, std::int64_t i, auto access, ivec<C> on) CONVNORM_INLINE {
      vec<C> g_sum{}, dot{}, old_weight{}, old_bias{};
      // Before the stores: a load waits for earlier stores at the same offset in a page.
      if constexpr (kSums) old_weight = load(to_weight + i), old_bias = load(to_bias + i);
      for (int r = 0; r < R; ++r) {
        const T *x_r = from + r * size + i, *g_r = g + r * size + i;
        if constexpr (kFetch) {
          __builtin_prefetch(g_r + ahead);
          __builtin_prefetch(x_r + ahead);
        }
        const vec<C> gv = access.get(g_r), xhat = (access.get(x_r) - center[r]) * inv[r] + rest[r];
        g_sum = r == 0 ? gv : g_sum + gv;
        dot = r == 0 ? gv * xhat : dot + gv * xhat;
        if constexpr (kInput)
          access.put(to + r * size + i, (gv * access.get(w + i)) * inv[r] - level[r] - xhat * along[r]);
      }
      if constexpr (kSums) {  // these are padded: a part of a vector is stored whole
        store(to_weight + i, old_weight + masked<C>(dot, on));
        store(to_bias + i, old_bias + masked<C>(g_sum, on));
      }
    });
  }

  template <int R>
  void combine(const Slopes<C>* b, std::int64_t row, std::int64_t begin, std::int64_t length,
               C* const (&sums)[2], std::int64_t ahead) const {
    if (!grad_input) return combine<R, false, false>(b, row, begin, length, sums, ahead);
    const bool around =
        stream && can_stream(grad_input + row * p.size + begin, length) && p.size % kLanes<C> == 0;
    around ? combine<R, true, true>(b, row, begin, length, sums, ahead)
           : combine<R, true, false>(b, row, begin, length, sums, ahead);
  }

  // As many rows as are left, R at a time: f(row, R as a type).
  template <class F>
  static CONVNORM_INLINE inline void each_group(std::int64_t begin, std::int64_t end, F f) {
    std::int64_t row = begin;
    for (; row + kGroup <= end; row += kGroup) f(row, RowCount<kGroup>{});
    for (; row < end; ++row) f(row, RowCount<1>{});
  }

  static std::int64_t padded(std::int64_t length) { return length + kLanes<C>; }

  void clear(C* const (&sums)[2], std::int64_t length) const {
    for (int k = 0; k < 2 && kSums; ++k)
      for (std::int64_t i = 0; i < padded(length); ++i) sums[k][i] = 0;
  }

  // Adds the sums to doubles.
  void flush(C* const (&sums)[2], std::int64_t length, double* to_weight, double* to_bias) const {
    if constexpr (!kSums) return;
    for (std::int64_t i = 0; i < length; ++i) to_weight[i] += sums[0][i];
    for (std::int64_t i = 0; i < length; ++i) to_bias[i] += sums[1][i];
    clear(sums, length);
  }

  struct Local {
    C* sums[2];
    explicit Local(std::int64_t length) {
      const std::int64_t room = Arena::room<C>(padded(length));
      Arena arena{static_cast<char*>(scratch_bytes(Slot::local, 2 * room))};
      for (C*& s : sums) s = arena.take<C>(padded(length));
    }
  };

  void tile_of_rows(std::int64_t begin, std::int64_t end, double* partial) const {
    const std::int64_t batch = imin(kAtOnce, imax(kGroup, kAtOnceSize / p.size / kGroup * kGroup));
    const Local local(kSums ? p.size : 0);
    clear(local.sums, p.size);
    for (std::int64_t i = 0; i < 2 * p.size && kSums; ++i) partial[i] = 0;
    for (std::int64_t block = begin; block < end; block += kFlush) {
      const std::int64_t rows = imin(kFlush, end - block);
      Standard k;
      k.set(p.mean + block, p.var + block, p.eps, rows);
      for (std::int64_t row = block; row < block + rows; row += batch) {
        const std::int64_t last = imin(row + batch, block + rows);
        Slopes<C> b[kAtOnce];
        for (std::int64_t r = row; r < last; ++r) b[r - row] = slopes(r, k, r - block);
        each_group(row, last, [&](std::int64_t first, auto count) CONVNORM_INLINE {
          combine<decltype(count)::value>(b + (first - row), first, 0, p.size, local.sums, batch * p.size);
        });
      }
      flush(local.sums, p.size, partial, partial + p.size);
    }
  }

  void by_rows(Arena arena) const {
    const std::int64_t tile = imax(kLeastRows, ceil_div(p.rows, kEnoughTasks)),
                       tiles = ceil_div(p.rows, tile);
    double* partial = kSums ? arena.take<double>(2 * tiles * p.size) : nullptr;
    parallel_for(tiles, imax(1, kGrain / (tile * p.size)), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t)
        tile_of_rows(t * tile, imin((t + 1) * tile, p.rows), partial + 2 * t * p.size * kSums);
      stream_fence();
    });
    if constexpr (!kSums) return;
    parallel_for(p.size, 512, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) p.grad_weight[i] = p.grad_bias[i] = 0;
      for (std::int64_t t = 0; t < tiles; ++t) {
        const double *to_weight = partial + 2 * t * p.size, *to_bias = to_weight + p.size;
        for (std::int64_t i = begin; i < end; ++i) p.grad_weight[i] += to_weight[i];
        for (std::int64_t i = begin; i < end; ++i) p.grad_bias[i] += to_bias[i];
      }
    });
  }

  void tile_of_columns(const Slopes<C>* b, std::int64_t begin, std::int64_t length) const {
    const Local local(kSums ? length : 0);
    clear(local.sums, length);
    for (std::int64_t i = begin; i < begin + length && kSums; ++i) p.grad_weight[i] = p.grad_bias[i] = 0;
    for (std::int64_t block = 0; block < p.rows; block += kFlush) {
      each_group(block, imin(block + kFlush, p.rows), [&](std::int64_t row, auto count) CONVNORM_INLINE {
        constexpr int R = decltype(count)::value;
        combine<R>(b + row, row, begin, length, local.sums, R * p.size);
      });
      if constexpr (kSums) flush(local.sums, length, p.grad_weight + begin, p.grad_bias + begin);
    }
  }

  void by_columns(Arena arena) const {
    Slopes<C>* b = arena.take<Slopes<C>>(p.rows);
    parallel_for(p.rows, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        Standard k;
        k.set(p.mean + row, p.var + row, p.eps, 1);
        b[row] = slopes(row, k, 0);
      }
    });
    parallel_for(ceil_div(p.size, kColumns), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t)
        tile_of_columns(b, t * kColumns, imin(kColumns, p.size - t * kColumns));
      stream_fence();
    });
  }

  template <bool kByColumns>
  void run() {
    const std::int64_t tiles = imin(ceil_div(p.rows, kLeastRows), kEnoughTasks);
    const std::int64_t rest = kByColumns ? Arena::room<Slopes<C>>(p.rows)
                              : kSums    ? Arena::room<double>(2 * tiles * p.size)
                                         : 0;
    Arena arena{static_cast<char*>(scratch_bytes(Slot::shared, Arena::room<C>(p.size) + rest))};
    weight = widened<C>(p.weight, p.weight_dtype, p.size, 1, arena.take<C>(p.size));
    kByColumns ? by_columns(arena) : by_rows(arena);
  }
};

}  // namespace
}  // namespace convnorm::layer_norm
