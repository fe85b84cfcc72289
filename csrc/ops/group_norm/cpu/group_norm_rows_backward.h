// Backward of group norm over rows: two sums per channel of an image, then one write; slabs and chunks as in
// group_norm_rows.h.
#pragma once

namespace convnorm::group_norm {
namespace {

template <class T>
struct RowsBackward {
  using C = compute_t<T>;
  const Backward& p;
  const T *const x, *const grad;
  T* const grad_input;
  const Slabs s;
  const std::int64_t padded;
  const bool stream;

  explicit RowsBackward(const Backward& params)
      : p(params),
        x(static_cast<const T*>(p.x)),
        grad(static_cast<const T*>(p.grad_output)),
        grad_input(static_cast<T*>(p.grad_input)),
        s(p),
        padded(s.width + kLanes<C>),
        stream(far_larger_than_caches<T>(p) && p.channels % kLanes<C> == 0) {}

  std::int64_t offset(const Tile& t) const { return (t.n * p.inner + t.row) * p.channels + t.channel; }

  // Four rows are added in C, then in more digits. One PairSums per vector of the row; the vector that
  // overlaps the one before has its own.
  void row_sums(const Tile& t, const C* center, PairSums<C>* totals) const {
    const T *x0 = x + offset(t), *g0 = grad + offset(t);
    const std::int64_t stride = p.channels;
    each_group(t.rows, true, [&](std::int64_t row, auto count) CONVNORM_INLINE {
      constexpr int R = decltype(count)::value;
      const T *from = x0 + row * stride, *g = g0 + row * stride;
      each_vector<C, 1>(t.width, [&](int, std::int64_t i, auto access, ivec<C> on) CONVNORM_INLINE {
        const vec<C> m = load(center + i);
        PairSums<C>& total = totals[ceil_div(i, kLanes<C>)];
        vec<C> g4{}, dot4{};
        for (int r = 0; r < R; ++r) {
          __builtin_prefetch(from + (r + kAhead) * stride + i);
          __builtin_prefetch(g + (r + kAhead) * stride + i);
          const vec<C> gv = access.get(g + r * stride + i);
          g4 += gv;
          dot4 += gv * (access.get(from + r * stride + i) - m);
          if (r + 1 < R && PairSums<C>::kTerms > 1) continue;
          total.add(masked<C>(g4, on), masked<C>(dot4, on));
          g4 = dot4 = vec<C>{};
        }
      });
    });
  }

  void tile_sums(const Tile& t, PlaneSums* to, Arena arena) const {
    C* center = arena.take<C>(padded);
    PairSums<C>* totals = arena.take<PairSums<C>>(padded / kLanes<C> + 1);
    double* values = arena.take<double>(2 * padded);
    for (std::int64_t i = 0; i <= padded / kLanes<C>; ++i) totals[i] = PairSums<C>{};
    for (std::int64_t c = 0; c < padded; ++c) center[c] = 0;
    const std::int64_t first = t.n * p.groups + t.group;
    for (std::int64_t g = 0; g < t.groups; ++g)
      for (std::int64_t c = g * s.depth; c < (g + 1) * s.depth; ++c)
        center[c] = static_cast<C>(p.mean[first + g]);
    row_sums(t, center, totals);
    for (std::int64_t c = 0; c < 2 * padded; ++c) values[c] = 0;
    each_vector<C, 1>(t.width, [&](int, std::int64_t i, auto, ivec<C>) {
      const PairSums<C>& total = totals[ceil_div(i, kLanes<C>)];
      for (int lane = 0; lane < kLanes<C>; ++lane) {
        values[i + lane] += total.g_lane(lane);
        values[padded + i + lane] += total.dot_lane(lane);
      }
    });
    for (std::int64_t g = 0; g < t.groups; ++g) {
      const PlaneSummer sum(p, first + g, center[g * s.depth]);
      for (std::int64_t c = g * s.depth; c < (g + 1) * s.depth; ++c)
        to[c] = sum(values[c], values[padded + c]);
    }
  }

  // The coefficients of a slab, one array each.
  struct SlabSlopes {
    C *center, *inv, *rest, *slope, *along, *level;
  };

  SlabSlopes slopes(const Tile& t, const PlaneSums* image, Arena& arena) const {
    SlabSlopes k;
    for (C** array : {&k.center, &k.inv, &k.rest, &k.slope, &k.along, &k.level})
      *array = arena.take<C>(padded);
    for (std::int64_t g = 0; g < t.groups; ++g) {
      const GroupSlopes group(p, t.n * p.groups + t.group + g, image + t.channel + g * s.depth);
      for (std::int64_t c = g * s.depth; c < (g + 1) * s.depth; ++c) {
        const Slopes<C> one = group.channel<C>(p, t.channel + c);
        k.center[c] = one.center, k.inv[c] = one.inv, k.rest[c] = one.rest;
        k.slope[c] = one.slope, k.along[c] = one.along, k.level[c] = one.level;
      }
    }
    return k;
  }

  template <bool kStream>
  void write(const Tile& t, const SlabSlopes& k) const {
    const T *x0 = x + offset(t), *g0 = grad + offset(t);
    T* to0 = grad_input + offset(t);
    const std::int64_t stride = p.channels;
    const SlabSlopes a = k;
    each_group(t.rows, short_rows<T>(stride), [&](std::int64_t row, auto count) CONVNORM_INLINE {
      constexpr int R = decltype(count)::value;
      const std::int64_t at = row * stride;
      each_vector<C, 1, kStream>(t.width, [&](int, std::int64_t i, auto access, ivec<C>) CONVNORM_INLINE {
        const vec<C> center = load(a.center + i), inv = load(a.inv + i), rest = load(a.rest + i);
        const vec<C> slope = load(a.slope + i), along = load(a.along + i), level = load(a.level + i);
        for (int r = 0; r < R; ++r) {
          const std::int64_t j = at + r * stride + i;
          if constexpr (!kStream) __builtin_prefetch(to0 + j + kAheadWrite * stride);
          const vec<C> xhat = (access.get(x0 + j) - center) * inv + rest;
          access.put(to0 + j, access.get(g0 + j) * slope - level - xhat * along);
        }
      });
    });
  }

  void write(const Tile& t, const PlaneSums* image, Arena arena) const {
    if (!grad_input) return;
    const SlabSlopes k = slopes(t, image, arena);
    stream&& can_stream(grad_input + offset(t), t.width) ? write<true>(t, k) : write<false>(t, k);
  }

  template <class F>
  void each_tile(F f) const {
    const std::int64_t for_sums = Arena::room<C>(padded) + 2 * Arena::room<double>(padded) +
                                  Arena::room<PairSums<C>>(padded / kLanes<C> + 1);
    const std::int64_t bytes = imax(for_sums, 6 * Arena::room<C>(padded));
    const std::int64_t grain = imax(1, kGrain / (s.chunk_rows * s.width));
    parallel_for(p.batch * s.across * s.chunks, grain, [&](std::int64_t begin, std::int64_t end) {
      const Arena arena{static_cast<char*>(scratch_bytes(Slot::local, bytes))};
      for (std::int64_t t = begin; t < end; ++t) f(tile_at(p, s, t), arena);
      stream_fence();
    });
  }

  void in_chunks(PlaneSums* all, PlaneSums* partial) const {
    const std::int64_t planes = p.batch * p.channels;
    each_tile([&](const Tile& t, Arena arena) {
      tile_sums(t, partial + t.chunk * planes + t.n * p.channels + t.channel, arena);
    });
    for (std::int64_t plane = 0; plane < planes; ++plane) {
      all[plane] = {};
      for (std::int64_t k = 0; k < s.chunks; ++k) {
        all[plane].g += partial[k * planes + plane].g;
        all[plane].gx += partial[k * planes + plane].gx;
      }
    }
    each_tile([&](const Tile& t, Arena arena) { write(t, all + t.n * p.channels, arena); });
  }

  void run() const {
    const std::int64_t planes = p.batch * p.channels, partial = s.chunks > 1 ? planes * s.chunks : 0;
    Arena arena{static_cast<char*>(
        scratch_bytes(Slot::shared, Arena::room<PlaneSums>(planes) + Arena::room<PlaneSums>(partial)))};
    PlaneSums* all = arena.take<PlaneSums>(planes);
    if (s.chunks > 1) {
      in_chunks(all, arena.take<PlaneSums>(partial));
    } else {
      each_tile([&](const Tile& t, Arena local) {
        PlaneSums* image = all + t.n * p.channels;
        tile_sums(t, image + t.channel, local);
        write(t, image, local);
      });
    }
    add_images(p, all);
  }
};

}  // namespace
}  // namespace convnorm::group_norm
