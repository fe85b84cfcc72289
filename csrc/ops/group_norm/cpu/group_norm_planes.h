// Group norm where the inner extent is contiguous (NCHW): a group of an image is one run of memory.
//
// Forward: a task is a batch of groups (short ones together, cpu/sweep.h): moments, then one write while they
// are in cache, which fetches the next. Backward: a task is a group: two sums per plane, then one write. When
// there are few groups they are cut: in forward into chunks of the run whose moments are merged in order, in
// backward into planes and chunks of these.
#pragma once

namespace convnorm::group_norm {
namespace {

inline constexpr std::int64_t kFewGroups = 16;
inline constexpr std::int64_t kShortPlane = 512;  // elements summed in C: at most 16 terms a lane

template <class T>
struct PlanesForward {
  using C = compute_t<T>;
  const Forward& p;
  const T* const x;
  T* const out;
  const std::int64_t groups, values, chunks;  // groups of all images; values of a group
  const bool stream;

  explicit PlanesForward(const Forward& params)
      : p(params),
        x(static_cast<const T*>(p.x)),
        out(static_cast<T*>(p.out)),
        groups(p.batch * p.groups),
        values(p.group_values()),
        chunks(chunks_of(groups, values)),
        stream(far_larger_than_caches<T>(p)) {}

  void plane(const Coefficients<C>& k, std::int64_t at, std::int64_t length, std::int64_t ahead) const {
    const T *from = x + at, *next = from + ahead;
    T* to = out + at;
    const vec<C> center = splat<C>(k.center), scale = splat<C>(k.scale), shift = splat<C>(k.shift);
    each_vector<C>(length, stream && can_stream(to, length),
                   [&](int, std::int64_t i, auto access, ivec<C>) CONVNORM_INLINE {
                     __builtin_prefetch(next + i);
                     access.put(to + i, (access.get(from + i) - center) * scale + shift);
                   });
  }

  // Values [begin, end) of group t of all images.
  void write(std::int64_t t, double mean, double r, std::int64_t begin, std::int64_t end,
             std::int64_t ahead) const {
    const std::int64_t first = t % p.groups * p.depth(), depth = begin / p.inner;
    std::int64_t c = first + depth, stop = (depth + 1) * p.inner;
    for (std::int64_t i = begin; i < end; ++c, stop += p.inner) {
      const std::int64_t length = imin(stop, end) - i;
      plane(coefficients<C>(p, c, mean, r), t * values + i, length, ahead);
      i += length;
    }
  }

  void batch(std::int64_t t, std::int64_t count) const {
    double mean[kBatch], var[kBatch] = {}, r[kBatch];
    if (values <= kSegment) {
      batch_moments(x + t * values, count, values, mean, var);
    } else {
      const Moments m = run_moments(x + t * values, values);
      mean[0] = m.mean, var[0] = m.m2 / m.count;
    }
    for (std::int64_t i = 0; i < kBatch; i += kLanes<double>)
      store(r + i, 1.0 / vsqrt(load(var + i) + p.eps));
    for (std::int64_t i = 0; i < count; ++i) {
      p.mean[t + i] = mean[i], p.var[t + i] = var[i];
      write(t + i, mean[i], r[i], 0, values, count * values);
    }
  }

  void whole_groups() const {
    const std::int64_t some = batch_of(values);
    parallel_for(ceil_div(groups, some), imax(1, kGrain / (values * some)),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t t = begin; t < end; ++t) batch(t * some, imin(some, groups - t * some));
                   stream_fence();
                 });
  }

  template <class F>
  void each_chunk(F f) const {
    parallel_for(groups * chunks, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t k = t % chunks;
        f(t, t / chunks, values * k / chunks, values * (k + 1) / chunks);
      }
      stream_fence();
    });
  }

  void in_chunks() const {
    auto* partial = static_cast<Moments*>(scratch_bytes(Slot::shared, groups * chunks * sizeof(Moments)));
    each_chunk([&](std::int64_t t, std::int64_t group, std::int64_t begin, std::int64_t end) {
      partial[t] = run_moments(x + group * values + begin, end - begin);
    });
    for (std::int64_t group = 0; group < groups; ++group) {
      Moments m;
      for (std::int64_t k = 0; k < chunks; ++k) merge(m, partial[group * chunks + k]);
      p.mean[group] = m.mean, p.var[group] = m.m2 / m.count;
    }
    each_chunk([&](std::int64_t, std::int64_t group, std::int64_t begin, std::int64_t end) {
      write(group, p.mean[group], 1 / __builtin_sqrt(p.var[group] + p.eps), begin, end, end - begin);
    });
  }

  void run() const { chunks == 1 ? whole_groups() : in_chunks(); }
};

template <class T>
struct PlanesBackward {
  using C = compute_t<T>;
  const Backward& p;
  const T *const x, *const grad;
  T* const grad_input;
  const std::int64_t groups, depth;
  const bool stream;

  explicit PlanesBackward(const Backward& params)
      : p(params),
        x(static_cast<const T*>(p.x)),
        grad(static_cast<const T*>(p.grad_output)),
        grad_input(static_cast<T*>(p.grad_input)),
        groups(p.batch * p.groups),
        depth(p.depth()),
        stream(far_larger_than_caches<T>(p)) {}

  PlaneSums sums(std::int64_t plane, const PlaneSummer& to, C center, std::int64_t begin,
                 std::int64_t length) const {
    const T *from = x + plane * p.inner + begin, *g = grad + plane * p.inner + begin;
    return sizeof(C) == 4 && length <= kShortPlane ? short_sums(from, g, to, center, length)
                                                   : long_sums(from, g, to, center, length);
  }

  PlaneSums short_sums(const T* from, const T* g, const PlaneSummer& to, C center,
                       std::int64_t length) const {
    vec<C> sum[kAlone + 1] = {}, dot[kAlone + 1] = {};
    each_vector<C>(length, [&](int way, std::int64_t i, auto access, ivec<C> on) CONVNORM_INLINE {
      const vec<C> gv = masked<C>(access.get(g + i), on);
      sum[way] += gv;
      dot[way] += gv * (access.get(from + i) - center);
    });
    return to(fold<kLanes<C>, C>((sum[0] + sum[1]) + (sum[2] + sum[3]) + sum[kAlone]),
              fold<kLanes<C>, C>((dot[0] + dot[1]) + (dot[2] + dot[3]) + dot[kAlone]));
  }

  // Vectors are added by four in C, then in more digits: that hides behind the memory.
  PlaneSums long_sums(const T* from, const T* g, const PlaneSummer& to, C center, std::int64_t length) const {
    PairSums<C> total;
    vec<C> g4{}, dot4{};
    each_vector<C>(length, [&](int way, std::int64_t i, auto access, ivec<C> on) CONVNORM_INLINE {
      const vec<C> d = access.get(from + i) - center, gv = masked<C>(access.get(g + i), on);
      const bool each = PairSums<C>::kTerms == 1 || way == kAlone;
      const bool first = each || way == 0, last = each || way == 3;
      g4 = first ? gv : g4 + gv;
      dot4 = first ? gv * d : dot4 + gv * d;
      if (last) total.add(g4, dot4);
    });
    return to(g_total(total), dot_total(total));
  }

  void write(const Slopes<C>& k, std::int64_t at, std::int64_t length, std::int64_t ahead) const {
    const T *from = x + at, *g = grad + at;
    T* to = grad_input + at;
    const vec<C> center = splat<C>(k.center), inv = splat<C>(k.inv), rest = splat<C>(k.rest);
    const vec<C> slope = splat<C>(k.slope), along = splat<C>(k.along), level = splat<C>(k.level);
    each_vector<C>(length, stream && can_stream(to, length),
                   [&](int, std::int64_t i, auto access, ivec<C>) CONVNORM_INLINE {
                     if constexpr (kFetch) {
                       __builtin_prefetch(from + i + ahead);
                       __builtin_prefetch(g + i + ahead);
                     }
                     const vec<C> xhat = (access.get(from + i) - center) * inv + rest;
                     access.put(to + i, access.get(g + i) * slope - level - xhat * along);
                   });
  }

  void whole_groups(PlaneSums* all) const {
    parallel_for(groups, imax(1, kGrain / p.group_values()), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const C center = static_cast<C>(p.mean[t]);
        const PlaneSummer to(p, t, center);
        for (std::int64_t k = t * depth; k < (t + 1) * depth; ++k) all[k] = sums(k, to, center, 0, p.inner);
        if (!grad_input) continue;
        const GroupSlopes group(p, t, all + t * depth);
        for (std::int64_t k = t * depth; k < (t + 1) * depth; ++k)
          write(group.channel<C>(p, k % p.channels), k * p.inner, p.inner, p.group_values());
      }
      stream_fence();
    });
  }

  void in_planes(PlaneSums* all, PlaneSums* partial, std::int64_t chunks) const {
    const auto each = [&](auto f) {
      parallel_for(p.batch * p.channels * chunks, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t) {
          const std::int64_t k = t % chunks, begin = p.inner * k / chunks;
          f(t, t / chunks, begin, p.inner * (k + 1) / chunks - begin);
        }
        stream_fence();
      });
    };
    each([&](std::int64_t t, std::int64_t plane, std::int64_t begin, std::int64_t length) {
      const C center = static_cast<C>(p.mean[plane / depth]);
      partial[t] = sums(plane, PlaneSummer(p, plane / depth, center), center, begin, length);
    });
    for (std::int64_t plane = 0; plane < p.batch * p.channels; ++plane) {
      all[plane] = {};
      for (std::int64_t k = 0; k < chunks; ++k) {
        all[plane].g += partial[plane * chunks + k].g;
        all[plane].gx += partial[plane * chunks + k].gx;
      }
    }
    if (!grad_input) return;
    each([&](std::int64_t, std::int64_t plane, std::int64_t begin, std::int64_t length) {
      const std::int64_t t = plane / depth;
      const GroupSlopes group(p, t, all + t * depth);
      write(group.channel<C>(p, plane % p.channels), plane * p.inner + begin, length, length);
    });
  }

  void run() const {
    const bool few = groups < kFewGroups && p.group_values() >= kChunk;
    const std::int64_t planes = p.batch * p.channels, chunks = few ? chunks_of(planes, p.inner) : 0;
    Arena arena{static_cast<char*>(scratch_bytes(
        Slot::shared, Arena::room<PlaneSums>(planes) + Arena::room<PlaneSums>(planes * chunks)))};
    PlaneSums* all = arena.take<PlaneSums>(planes);
    few ? in_planes(all, arena.take<PlaneSums>(planes * chunks), chunks) : whole_groups(all);
    add_images(p, all);
  }
};

}  // namespace
}  // namespace convnorm::group_norm
