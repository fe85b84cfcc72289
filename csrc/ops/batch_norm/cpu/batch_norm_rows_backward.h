// Backward of batch norm over rows: two sums per channel, then one write; tiles and order as in
// batch_norm_rows.h.
#pragma once

namespace convnorm::batch_norm {
namespace {

template <class T, Mask kMask>
struct RowsBackward {
  using C = compute_t<T>;
  const Backward& p;
  const Rows g;
  const RowSource<T> grad, x, out;
  const bool stream;
  const std::int64_t joined;
  static constexpr std::int64_t kVectors = kWidth / kLanes<C> + 1, kPitch = Coefficients<C>::kPitch;

  explicit RowsBackward(const Backward& params)
      : p(params),
        g(p.x),
        grad(p.grad_output),
        x(p.x),
        out(p.out),
        stream(worth_streaming<T>(p, kMask == Mask::from_out ? 4 : 3) && g.channels % kLanes<C> == 0),
        joined(rows_joined(g, grad, x, out)) {}

  // The same with rows of grad_output that are made for one tile, if they are.
  RowsBackward(const RowsBackward& all, const NormView& grad_rows)
      : p(all.p), g(all.g), grad(grad_rows), x(p.x), out(p.out), stream(all.stream), joined(all.joined) {}

  NormView gradient(const Tile& t) const {
    return p.made.make ? p.made.make(p.made.context, t.row, t.rows, t.channel, t.width) : p.grad_output;
  }

  struct Group {
    RowGroup<T> grad, x, out;
  };

  Group group(std::int64_t row, std::int64_t step, int rows, const Tile& t, T* gathered) const {
    Group from{grad.get(row, step, rows, t.channel, t.width, gathered),
               x.get(row, step, rows, t.channel, t.width, gathered + kGroup * kWidth),
               {}};
    from.out = from.x;  // not read
    if (kMask == Mask::from_out)
      from.out = out.get(row, step, rows, t.channel, t.width, gathered + 2 * kGroup * kWidth);
    return from;
  }

  // grad_output of one vector where relu let it pass; k: center, scale and shift of its channels.
  template <class Access>
  static CONVNORM_INLINE inline vec<C> passed(vec<C> gv, const T* y, const Access& access, vec<C> d,
                                              const C* k) {
    if constexpr (kMask == Mask::from_x)
      return d * load(k + kPitch) + load(k + 2 * kPitch) <= C(0) ? vec<C>{} : gv;
    if constexpr (kMask == Mask::from_out) return access.get(y) <= C(0) ? vec<C>{} : gv;
    return gv;
  }

  // A group of rows is added in C, then in more digits. One PairSums per vector of the row; the vector that
  // overlaps the one before has its own. k: the tile's table.
  void add_rows(const C* k, const Tile& t, PairSums<C>* totals, T* gathered) const {
    const std::int64_t x_ahead = g.ahead * imax(0, x.stride), grad_ahead = g.ahead * imax(0, grad.stride);
    each_group(t.row, t.rows, [&](std::int64_t row, std::int64_t step, auto count) CONVNORM_INLINE {
      constexpr int R = decltype(count)::value;
      const Group from = group(row, step, R, t, gathered);
      const T *const xs = from.x.data, *const gs = from.grad.data, *const ys = from.out.data;
      const std::int64_t x_stride = from.x.stride, g_stride = from.grad.stride, y_stride = from.out.stride;
      each_vector<C>(t.width, [&](int way, std::int64_t c, auto access, ivec<C> on) CONVNORM_INLINE {
        const vec<C> center = load(k + c);
        PairSums<C>& total = totals[ceil_div(c, kLanes<C>)];
        vec<C> g4{}, dot4{};
        for (int r = 0; r < R; ++r) {
          const T *const xr = xs + r * x_stride + c, *const gr = gs + r * g_stride + c;
          if (starts_line<T>(way)) {
            __builtin_prefetch(xr + x_ahead);
            __builtin_prefetch(gr + grad_ahead);
          }
          const vec<C> d = access.get(xr) - center;
          const vec<C> gv = passed(access.get(gr), ys + r * y_stride + c, access, d, k + c);
          g4 += gv;
          dot4 += gv * d;
          if (r + 1 < R && PairSums<C>::kTerms > 1) continue;
          total.add(masked<C>(g4, on), masked<C>(dot4, on));
          g4 = dot4 = vec<C>{};
        }
      });
    });
  }

  void sums(const C* k, const Tile& t, double* grad_bias, double* dots, Arena arena) const {
    T* gathered = arena.take<T>(3 * kGroup * kWidth);
    PairSums<C>* totals = arena.take<PairSums<C>>(kVectors);
    for (std::int64_t i = 0; i < kVectors; ++i) totals[i].clear();
    add_rows(k, t, totals, gathered);
    for (std::int64_t c = 0; c < t.width; ++c) grad_bias[c] = dots[c] = 0;
    each_vector<C>(t.width, [&](int, std::int64_t c, auto, ivec<C>) {
      const PairSums<C>& total = totals[ceil_div(c, kLanes<C>)];
      if (c + kLanes<C> <= t.width) return total.add_to(grad_bias + c, dots + c);
      for (int lane = 0; c + lane < t.width; ++lane) {
        grad_bias[c + lane] += total.g_lane(lane);
        dots[c + lane] += total.dot_lane(lane);
      }
    });
  }

  // Sums of `count` channels from those of their tiles, in order of rows; partial: [down][g, dot][channels].
  void merge_tiles(const double* partial, std::int64_t first, std::int64_t count) const {
    each_channels(count, [&](std::int64_t i, std::int64_t lanes) CONVNORM_INLINE {
      Doubles g_sum{}, dot{};
      for (std::int64_t tile = 0; tile < g.down; ++tile) {
        const double* from = partial + 2 * tile * g.channels + first + i;
        g_sum += load_channels(from, lanes);
        dot += load_channels(from + g.channels, lanes);
      }
      store_channels(p.grad_bias + first + i, g_sum, lanes);
      store_channels(p.grad_weight + first + i, dot, lanes);
    });
  }

  // R times `rows` rows from `row` on.
  template <int R, bool kGradResidual>
  void update_rows(const C* k, const Tile& t, std::int64_t row, std::int64_t rows, T* gathered) const {
    const Group from = group(row, rows, R, t, gathered);
    const T *const xs = from.x.data, *const gs = from.grad.data, *const ys = from.out.data;
    const std::int64_t x_stride = from.x.stride, g_stride = from.grad.stride, y_stride = from.out.stride;
    const std::int64_t ld = rows * g.channels, at = row * g.channels + t.channel, width = rows * t.width;
    T* const grad_input = p.grad_input.data ? static_cast<T*>(p.grad_input.data) + at : nullptr;
    T* const grad_residual = kGradResidual ? static_cast<T*>(p.grad_residual.data) + at : nullptr;
    const T* aligned = kGradResidual ? grad_residual : grad_input;
    each_vector<C>(width, stream && can_stream(aligned, width),
                   [&](int, std::int64_t c, auto access, ivec<C>) CONVNORM_INLINE {
                     const vec<C> center = load(k + c), slope = load(k + 3 * kPitch + c);
                     const vec<C> along = load(k + 4 * kPitch + c), level = load(k + 5 * kPitch + c);
                     for (int r = 0; r < R; ++r) {
                       const vec<C> d = access.get(xs + r * x_stride + c) - center;
                       const vec<C> gv =
                           passed(access.get(gs + r * g_stride + c), ys + r * y_stride + c, access, d, k + c);
                       if constexpr (kGradResidual) access.put(grad_residual + r * ld + c, gv);
                       if (!kGradResidual || grad_input)
                         access.put(grad_input + r * ld + c, ((gv - level) - d * along) * slope);
                     }
                   });
  }

  void update(const Coefficients<C>& k, const Tile& t, T* gathered) const {
    each_row(t, stream, joined, [&](std::int64_t row, std::int64_t rows, auto count) {
      constexpr int R = decltype(count)::value;
      p.grad_residual.data ? update_rows<R, true>(k.at, t, row, rows, gathered)
                           : update_rows<R, false>(k.at, t, row, rows, gathered);
    });
  }

  bool writes() const { return p.grad_input.data || p.grad_residual.data; }
  bool needs_sums() const { return !p.sums_given && (p.want_affine || (p.train && p.grad_input.data)); }

  static std::int64_t local_bytes() {
    return 3 * kGroup * kWidth * sizeof(T) + kVectors * sizeof(PairSums<C>) + 128;
  }

  // f(i, tile): column i of tiles.
  template <class F>
  void each_column(F f) const {
    parallel_for(g.across, kColumnGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) f(i, tile_at(g, i));
    });
  }

  void tile_sums(const Coefficients<C>& k, double* partial) const {
    parallel_for(g.down * g.across, g.grain(), [&](std::int64_t begin, std::int64_t end) {
      const Arena arena{static_cast<char*>(scratch_bytes(Slot::local, local_bytes()))};
      for (std::int64_t i = begin; i < end; ++i) {
        const Tile t = tile_at(g, i);
        double* to = partial + 2 * (i / g.across) * g.channels + t.channel;
        const NormView grad_rows = gradient(t);
        RowsBackward(*this, grad_rows).sums(k.table(i % g.across).at, t, to, to + g.channels, arena);
      }
    });
  }

  void run() const {
    const std::int64_t partial_size = 2 * g.down * g.channels;
    Arena arena{static_cast<char*>(
        scratch_bytes(Slot::shared, Coefficients<C>::bytes(g.across) + partial_size * 8 + 64))};
    const Coefficients<C> k(arena, g.across);
    double* partial = arena.take<double>(partial_size);
    each_column(
        [&](std::int64_t i, const Tile& t) { forward_coefficients(p, t.channel, t.width, k.table(i)); });
    if (needs_sums()) tile_sums(k, partial);
    each_column([&](std::int64_t i, const Tile& t) {
      if (needs_sums()) {
        merge_tiles(partial, t.channel, t.width);
        weight_gradients(p, t.channel, t.width, k.table(i));
      }
      backward_coefficients(p, t.channel, t.width, k.table(i));
      k.table(i).repeat(6, t.width, joined);
    });
    if (!writes()) return;
    parallel_for(g.down * g.across, g.grain(), [&](std::int64_t begin, std::int64_t end) {
      T* gathered = static_cast<T*>(scratch_bytes(Slot::local, 3 * kGroup * kWidth * sizeof(T)));
      for (std::int64_t i = end - 1; i >= begin; --i) {
        const Tile t = tile_at(g, i);
        const NormView grad_rows = gradient(t);
        RowsBackward(*this, grad_rows).update(k.table(i % g.across), t, gathered);
      }
      stream_fence();
    });
  }
};

}  // namespace
}  // namespace convnorm::batch_norm
