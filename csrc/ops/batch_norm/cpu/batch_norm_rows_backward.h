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
  static constexpr std::int64_t kVectors = kWidth / kLanes<C> + 1;

  explicit RowsBackward(const Backward& params)
      : p(params),
        g(p.x),
        grad(p.grad_output),
        x(p.x),
        out(p.out),
        stream(g.rows * g.channels * static_cast<std::int64_t>(sizeof(T)) >= kStreamBytes &&
               g.channels % kLanes<C> == 0) {}

  struct Group {
    RowGroup<T> grad, x, out;
  };

  Group group(std::int64_t row, int rows, const Tile& t, T* gathered) const {
    Group from{grad.get(row, rows, t.channel, t.width, gathered),
               x.get(row, rows, t.channel, t.width, gathered + kGroup * kWidth),
               {}};
    if (kMask == Mask::from_out)
      from.out = out.get(row, rows, t.channel, t.width, gathered + 2 * kGroup * kWidth);
    return from;
  }

  // grad_output of one vector where relu let it pass.
  template <class Access>
  static CONVNORM_INLINE inline vec<C> passed(const Group& from, int r, std::int64_t c, const Access& access,
                                              vec<C> d, vec<C> scale, vec<C> shift) {
    const vec<C> gv = access.get(from.grad.data + r * from.grad.stride + c);
    if constexpr (kMask == Mask::from_x) return d * scale + shift <= C(0) ? vec<C>{} : gv;
    if constexpr (kMask == Mask::from_out)
      return access.get(from.out.data + r * from.out.stride + c) <= C(0) ? vec<C>{} : gv;
    return gv;
  }

  // In double throughout, as in the planes method. One PairSums per vector of the row; the vector that
  // overlaps the one before has its own.
  void sums(const RowCoefficients<C>& k, const Tile& t, PairSums<C>* totals, T* gathered) const {
    each_group<kGroup>(t.row, t.rows, [&](std::int64_t row, auto count) CONVNORM_INLINE {
      constexpr int R = decltype(count)::value;
      const Group from = group(row, R, t, gathered);
      each_vector<C, 1>(t.width, false, [&](int, std::int64_t i, auto access, ivec<C> on) CONVNORM_INLINE {
        const std::int64_t c = t.channel + i;
        const vec<C> center = load(k.center + c), scale = load(k.scale + c), shift = load(k.shift + c);
        Wide<C> mean;
        __builtin_memcpy(&mean, k.mean + c, sizeof(mean));
        PairSums<C> total = totals[ceil_div(i, kLanes<C>)];
        for (int r = 0; r < R; ++r) {
          __builtin_prefetch(from.x.data + (r + kAhead) * from.x.stride + i);
          __builtin_prefetch(from.grad.data + (r + kAhead) * from.grad.stride + i);
          const vec<C> xv = access.get(from.x.data + r * from.x.stride + i);
          const vec<C> gv = passed(from, r, i, access, xv - center, scale, shift);
          total.add(masked<C>(gv, on), xv, mean);
        }
        totals[ceil_div(i, kLanes<C>)] = total;
      });
    });
  }

  void tile_sums(const RowCoefficients<C>& k, const Tile& t, double* grad_bias, double* grad_weight,
                 Arena arena) const {
    T* gathered = arena.take<T>(3 * kGroup * kWidth);
    PairSums<C>* totals = arena.take<PairSums<C>>(kVectors);
    for (std::int64_t i = 0; i < kVectors; ++i) totals[i] = PairSums<C>{};
    sums(k, t, totals, gathered);
    for (std::int64_t c = 0; c < t.width; ++c) grad_bias[c] = grad_weight[c] = 0;
    each_vector<C, 1>(t.width, false, [&](int, std::int64_t i, auto, ivec<C>) {
      const PairSums<C>& total = totals[ceil_div(i, kLanes<C>)];
      for (int lane = 0; lane < kLanes<C> && i + lane < t.width; ++lane) {
        grad_bias[i + lane] += total.g_lane(lane);
        grad_weight[i + lane] += total.dot_lane(lane) / __builtin_sqrt(p.var[t.channel + i + lane] + p.eps);
      }
    });
  }

  void update(const RowCoefficients<C>& k, const Tile& t, T* gathered) const {
    const std::int64_t ld = g.channels;
    each_group<1>(t.row, t.rows, [&](std::int64_t row, auto count) CONVNORM_INLINE {
      constexpr int R = decltype(count)::value;
      const Group from = group(row, R, t, gathered);
      const std::int64_t at = row * ld + t.channel;
      T* grad_input = p.grad_input.data ? static_cast<T*>(p.grad_input.data) + at : nullptr;
      T* grad_residual = p.grad_residual.data ? static_cast<T*>(p.grad_residual.data) + at : nullptr;
      const T* aligned = grad_input ? grad_input : grad_residual;
      each_vector<C, 1>(
          t.width, stream && can_stream(aligned, t.width),
          [&](int, std::int64_t i, auto access, ivec<C>) CONVNORM_INLINE {
            const std::int64_t c = t.channel + i;
            const vec<C> center = load(k.center + c), scale = load(k.scale + c), shift = load(k.shift + c);
            const vec<C> inv = load(k.inv + c), rest = load(k.rest + c);
            const vec<C> slope = load(k.slope + c), along = load(k.along + c), level = load(k.level + c);
            for (int r = 0; r < R; ++r) {
              const vec<C> d = access.get(from.x.data + r * from.x.stride + i) - center;
              const vec<C> gv = passed(from, r, i, access, d, scale, shift);
              if (grad_residual) access.put(grad_residual + r * ld + i, gv);
              if (grad_input)
                access.put(grad_input + r * ld + i, gv * slope - level - (d * inv + rest) * along);
            }
          });
    });
  }

  void all_sums(const RowCoefficients<C>& k, double* partial) const {
    const std::int64_t bytes = 3 * kGroup * kWidth * sizeof(T) + kVectors * sizeof(PairSums<C>) + 128;
    parallel_for(g.down * g.across, 1, [&](std::int64_t begin, std::int64_t end) {
      const Arena arena{static_cast<char*>(scratch_bytes(Slot::local, bytes))};
      for (std::int64_t i = begin; i < end; ++i) {
        const Tile t = tile_at(g, i);
        double* to = partial + 2 * (i / g.across) * g.channels + t.channel;
        tile_sums(k, t, to, to + g.channels, arena);
      }
    });
    parallel_for(g.channels, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = begin; c < end; ++c) {
        p.grad_bias[c] = p.grad_weight[c] = 0;
        for (std::int64_t i = 0; i < g.down; ++i) {
          p.grad_bias[c] += partial[2 * i * g.channels + c];
          p.grad_weight[c] += partial[(2 * i + 1) * g.channels + c];
        }
      }
    });
  }

  void run() const {
    const std::int64_t partial_bytes = 2 * g.down * g.channels * 8 + 64;
    Arena arena{static_cast<char*>(
        scratch_bytes(Slot::shared, RowCoefficients<C>::bytes(g.channels) + partial_bytes))};
    const RowCoefficients<C> k(arena, g.channels);
    for (std::int64_t c = 0; c < g.channels; ++c) k.set(c, coefficients<C>(p, c)), k.mean[c] = p.mean[c];
    if (p.want_affine || (p.train && p.grad_input.data))
      all_sums(k, arena.take<double>(2 * g.down * g.channels));
    if (!p.grad_input.data && !p.grad_residual.data) return;
    for (std::int64_t c = 0; c < g.channels; ++c) k.set(c, slopes<C>(p, c));
    parallel_for(g.down * g.across, 1, [&](std::int64_t begin, std::int64_t end) {
      T* gathered = static_cast<T*>(scratch_bytes(Slot::local, 3 * kGroup * kWidth * sizeof(T)));
      for (std::int64_t i = end - 1; i >= begin; --i) update(k, tile_at(g, i), gathered);
      stream_fence();
    });
  }
};

}  // namespace
}  // namespace convnorm::batch_norm
