// Backward of batch norm over planes: two sums per channel (g and g xhat), then one write; tasks, segments
// and blocks as in batch_norm_planes.h.
#pragma once

namespace convnorm::batch_norm {
namespace {

template <class T, Mask kMask>
struct PlanesBackward {
  using C = compute_t<T>;
  struct Sums {
    double g = 0, dot = 0;  // of g, and of g (x - center)
  };
  const Backward& p;
  const Planes g;
  const PlaneSource<T> grad, x, out;
  const bool stream;

  explicit PlanesBackward(const Backward& params)
      : p(params),
        g(p.x, deciding_channels(p)),
        grad(p.grad_output),
        x(p.x),
        out(p.out),
        stream(worth_streaming<T>(p, kMask == Mask::from_out ? 4 : 3)) {}

  static Arena local() {
    const std::int64_t tiles = 3 * kSegment * sizeof(T);
    return {static_cast<char*>(scratch_bytes(Slot::local, tiles + Coefficients<C>::bytes(1)))};
  }

  // grad_output of one vector where relu let it pass.
  template <class Access>
  static CONVNORM_INLINE inline vec<C> passed(vec<C> gv, const T* y, const Access& access, vec<C> d,
                                              vec<C> scale, vec<C> shift) {
    if constexpr (kMask == Mask::from_x) return d * scale + shift <= C(0) ? vec<C>{} : gv;
    if constexpr (kMask == Mask::from_out) return access.get(y) <= C(0) ? vec<C>{} : gv;
    return gv;
  }

  // Vectors are added by four in C, then in more digits: that hides behind the memory. k: channel c first.
  template <bool kIsShort>
  Sums sums(const C* at, std::int64_t c, std::int64_t s0, std::int64_t s1, T* tile) const {
    const Coefficients<C> k(const_cast<C*>(at));
    const auto center = splat<C>(*k.center()), scale = splat<C>(*k.scale()), shift = splat<C>(*k.shift());
    const ivec<C> last = last_of_short<C>(g.inner);
    PairSums<C> total;
    for (std::int64_t s = s0; s < s1; ++s) {
      const std::int64_t n = g.plane(s), begin = g.begin(s), length = g.length(s);
      const T* gs = grad.get(n, c, begin, length, tile);
      const T* xs = x.get(n, c, begin, length, tile + kSegment);
      const T* ys = kMask == Mask::from_out ? out.get(n, c, begin, length, tile + 2 * kSegment) : xs;
      vec<C> g4{}, dot4{};
      const auto add = [&](int way, std::int64_t i, auto access, ivec<C> on) CONVNORM_INLINE {
        const vec<C> d = access.get(xs + i) - center;
        const vec<C> gv = masked<C>(passed(access.get(gs + i), ys + i, access, d, scale, shift), on);
        g4 += gv;
        dot4 += gv * d;
        if (PairSums<C>::kTerms > 1 && way != 3) return;
        total.add(g4, dot4);
        g4 = dot4 = vec<C>{};
      };
      if constexpr (kIsShort)
        each_vector_of_short<C>(length, last, add);
      else
        each_vector_in_quarters<C>(length, add);
      total.add(g4, dot4);  // at most four vectors that made no group
    }
    return {total.g_sum(), total.dot_sum()};
  }

  template <bool kGradResidual, bool kIsShort>
  CONVNORM_INLINE inline void update(const C* at, std::int64_t n, std::int64_t c, std::int64_t begin,
                                     std::int64_t length, T* tile) const {
    const Coefficients<C> k(const_cast<C*>(at));
    const T* gs = grad.get(n, c, begin, length, tile);
    const T* xs = x.get(n, c, begin, length, tile + kSegment);
    const T* ys = kMask == Mask::from_out ? out.get(n, c, begin, length, tile + 2 * kSegment) : xs;
    const NormView& to = p.grad_input.data ? p.grad_input : p.grad_residual;
    const std::int64_t offset = n * to.outer_stride + c * to.channel_stride + begin;
    T* grad_input = p.grad_input.data ? static_cast<T*>(p.grad_input.data) + offset : nullptr;
    T* grad_residual = kGradResidual ? static_cast<T*>(p.grad_residual.data) + offset : nullptr;
    const T* aligned = kGradResidual ? grad_residual : grad_input;
    const auto center = splat<C>(*k.center()), scale = splat<C>(*k.scale()), shift = splat<C>(*k.shift());
    const auto slope = splat<C>(*k.slope()), along = splat<C>(*k.along()), level = splat<C>(*k.level());
    const auto write = [&](int, std::int64_t i, auto access, ivec<C>) CONVNORM_INLINE {
      const vec<C> d = access.get(xs + i) - center;
      const vec<C> gv = passed(access.get(gs + i), ys + i, access, d, scale, shift);
      if constexpr (kGradResidual) access.put(grad_residual + i, gv);
      if (!kGradResidual || grad_input) access.put(grad_input + i, ((gv - level) - d * along) * slope);
    };
    if constexpr (kIsShort)
      each_vector_of_short<C>(length, ivec<C>{}, write);
    else
      each_vector<C>(length, stream && can_stream(aligned, length), write);
  }

  bool writes() const { return p.grad_input.data || p.grad_residual.data; }
  bool needs_sums() const { return !p.sums_given && (p.want_affine || (p.train && p.grad_input.data)); }

  // at: the coefficients of channel c0 and those after it.
  template <bool kGradResidual, bool kIsShort>
  void write(const C* at, std::int64_t c0, std::int64_t width, std::int64_t s0, std::int64_t s1,
             T* tile) const {
    for (std::int64_t s = s1 - 1; s >= s0; --s)
      for (std::int64_t c = 0; c < width; ++c)
        update<kGradResidual, kIsShort>(at + c, g.plane(s), c0 + c, g.begin(s), g.length(s), tile);
  }
  void write(const C* at, std::int64_t c0, std::int64_t width, std::int64_t s0, std::int64_t s1,
             T* tile) const {
    const bool plane_is_short = is_short<C>(g.inner);
    if (p.grad_residual.data)
      plane_is_short ? write<true, true>(at, c0, width, s0, s1, tile)
                     : write<true, false>(at, c0, width, s0, s1, tile);
    else
      plane_is_short ? write<false, true>(at, c0, width, s0, s1, tile)
                     : write<false, false>(at, c0, width, s0, s1, tile);
  }

  void set_sums(std::int64_t c, const Sums& sums) const {
    p.grad_bias[c] = sums.g;
    p.grad_weight[c] = sums.dot;
  }

  void whole_channels() const {
    const std::int64_t grain = imax(1, kGrain / (g.outer * g.inner * g.block));
    parallel_for(g.blocks, grain, [&](std::int64_t begin, std::int64_t end) {
      Arena arena = local();
      const Coefficients<C> k(arena, 1);
      T* tile = arena.take<T>(3 * kSegment);
      for (std::int64_t b = begin; b < end; ++b) {
        const std::int64_t c0 = b * g.block, width = imin(g.block, g.channels - c0);
        forward_coefficients(p, c0, width, k);
        if (needs_sums()) {
          for (std::int64_t c = 0; c < width; ++c)
            set_sums(c0 + c, is_short<C>(g.inner) ? sums<true>(k.at + c, c0 + c, 0, g.segments, tile)
                                                  : sums<false>(k.at + c, c0 + c, 0, g.segments, tile));
          weight_gradients(p, c0, width, k);
        }
        if (!writes()) continue;
        backward_coefficients(p, c0, width, k);
        write(k.at, c0, width, 0, g.segments, tile);
      }
      stream_fence();
    });
  }

  // f(task, channel, first and last segment, tile)
  template <class F>
  void each_chunk(F f) const {
    parallel_for(g.channels * g.chunks, 1, [&](std::int64_t begin, std::int64_t end) {
      T* tile = local().template take<T>(3 * kSegment);
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t k = t % g.chunks;
        f(t, t / g.chunks, g.first_segment(k), g.first_segment(k + 1), tile);
      }
      stream_fence();
    });
  }

  void chunked_sums(const Coefficients<C>& k, Sums* partial) const {
    each_chunk([&](std::int64_t t, std::int64_t c, std::int64_t s0, std::int64_t s1, T* tile) {
      partial[t] = sums<false>(k.at + c, c, s0, s1, tile);
    });
    for (std::int64_t c = 0; c < g.channels; ++c) {
      Sums total;
      for (std::int64_t i = 0; i < g.chunks; ++i) {
        total.g += partial[c * g.chunks + i].g;
        total.dot += partial[c * g.chunks + i].dot;
      }
      set_sums(c, total);
    }
    weight_gradients(p, 0, g.channels, k);
  }

  void chunked_channels() const {
    const std::int64_t partial = g.channels * g.chunks, bytes = partial * sizeof(Sums) + 64;
    Arena shared{static_cast<char*>(scratch_bytes(Slot::shared, bytes + Coefficients<C>::bytes(1)))};
    const Coefficients<C> k(shared, 1);  // chunks are cut for fewer channels than a table holds
    forward_coefficients(p, 0, g.channels, k);
    if (needs_sums()) chunked_sums(k, shared.take<Sums>(partial));
    if (!writes()) return;
    backward_coefficients(p, 0, g.channels, k);
    each_chunk([&](std::int64_t, std::int64_t c, std::int64_t s0, std::int64_t s1, T* tile) {
      write(k.at + c, c, 1, s0, s1, tile);
    });
  }

  void run() const { g.chunks == 1 ? whole_channels() : chunked_channels(); }
};

}  // namespace
}  // namespace convnorm::batch_norm
