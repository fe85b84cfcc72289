// Batch norm where the inner extent is contiguous (NCHW).
//
// A channel is outer planes of `inner` elements, cut in segments of at most kSegment. In training a task is a
// whole channel: statistics, then normalise, while the channel is still in L2, so that memory is read once.
// With too few channels to occupy a machine they are cut into chunks of segments (decided by shape alone),
// whose moments are merged in order; then, as in evaluation, elements are normalised in memory order.
// Operands that are not planes are gathered one segment at a time.
#pragma once

namespace convnorm::batch_norm {
namespace {

inline constexpr std::int64_t kSegment = 4096;         // elements: 16 KB of float, half of L1
inline constexpr std::int64_t kEnoughTasks = 64;       // fewer channels than this are cut into chunks ...
inline constexpr std::int64_t kChunk = 16 * kSegment;  // ... of at least so many elements
inline constexpr std::int64_t kMostBlock = 16;  // short planes of so many channels make one run of memory
inline constexpr std::int64_t kFirst = 128;     // elements, at least, that give the first shift
inline constexpr std::int64_t kGrain = 32768;   // elements that are worth a thread's attention

struct Planes {
  std::int64_t channels, outer, inner;
  std::int64_t per_plane, segments;  // of a channel
  std::int64_t group;                // segments summed before a merge
  std::int64_t chunks;               // of a channel
  std::int64_t block;                // channels that are written together, image by image

  explicit Planes(const NormView& x) : channels(x.channels), outer(x.outer), inner(x.inner) {
    per_plane = ceil_div(inner, kSegment);
    segments = outer * per_plane;
    group = imax(1, kSegment / inner);
    const std::int64_t most = imin(imax(1, outer * inner / kChunk), segments);
    block = imin(kMostBlock, group);
    chunks = channels >= kEnoughTasks ? 1 : imin(ceil_div(kEnoughTasks, channels), most);
  }
  // Most planes are one segment: no division then.
  std::int64_t plane(std::int64_t s) const { return per_plane == 1 ? s : s / per_plane; }
  std::int64_t begin(std::int64_t s) const { return per_plane == 1 ? 0 : s % per_plane * kSegment; }
  std::int64_t length(std::int64_t s) const { return imin(kSegment, inner - begin(s)); }
  std::int64_t first_segment(std::int64_t chunk) const { return segments * chunk / chunks; }
};

// One operand: segments are pointed to where they are contiguous, else gathered into a tile of kSegment
// elements.
template <class T>
struct PlaneSource {
  const NormView& v;
  bool direct;

  explicit PlaneSource(const NormView& view) : v(view), direct(is_planes(view)) {}

  const T* get(std::int64_t n, std::int64_t c, std::int64_t i0, std::int64_t length, T* tile) const {
    const T* base = static_cast<const T*>(v.data) + n * v.outer_stride + c * v.channel_stride;
    return direct ? base + i0 : gather(base, i0, length, tile);
  }

 private:
  __attribute__((noinline)) const T* gather(const T* base, std::int64_t i0, std::int64_t length,
                                            T* tile) const {
    for (std::int64_t i = 0; i < length;) {
      const std::int64_t run = imin(length - i, v.size[2] - (i0 + i) % v.size[2]);
      const T* from = base + inner_offset(v, i0 + i);
      for (std::int64_t k = 0; k < run; ++k) tile[i + k] = from[k * v.stride[2]];
      i += run;
    }
    return tile;
  }
};

template <class T, bool kResidual, bool kRelu>
struct PlanesForward {
  using C = compute_t<T>;
  const Forward& p;
  const Planes g;
  const PlaneSource<T> x, residual;
  const bool stream;

  explicit PlanesForward(const Forward& params)
      : p(params),
        g(p.x),
        x(p.x),
        residual(p.residual),
        stream(g.channels * g.outer * g.inner * static_cast<std::int64_t>(sizeof(T)) >= kStreamBytes) {}

  static T* tiles() { return static_cast<T*>(scratch_bytes(Slot::local, 2 * kSegment * sizeof(T))); }

  template <class A>
  Moments sweep(std::int64_t c, std::int64_t s0, std::int64_t s1, double shift, T* tile) const {
    BlockSums<C, A> sums(shift);
    std::int64_t count = 0;
    for (std::int64_t s = s0; s < s1; ++s) {
      const std::int64_t length = g.length(s);
      const T* from = x.get(g.plane(s), c, g.begin(s), length, tile);
      each_vector<C>(length, false, [&](int way, std::int64_t i, auto access, ivec<C> on) CONVNORM_INLINE {
        sums.add(way, access.get(from + i), on);
      });
      count += length;
    }
    const double s2 = sums.total(sums.s2);
    if (!in_range(static_cast<A>(s2))) return sweep<double>(c, s0, s1, shift, tile);
    return moments(static_cast<double>(count), shift, sums.total(sums.s1), s2);
  }

  Moments statistics(std::int64_t c, std::int64_t s0, std::int64_t s1, T* tile) const {
    Moments total;
    for (std::int64_t s = s0; s < s1; s += g.group) {
      const std::int64_t end = imin(s + g.group, s1);
      if (total.count == 0) {
        const double first = load1(x.get(g.plane(s), c, g.begin(s), 1, tile));
        const std::int64_t some = imin(end, s + ceil_div(kFirst, g.inner));
        const double mean = sweep<C>(c, s, some, first, tile).mean;
        total.mean = is_finite(mean) ? mean : first;
      }
      merge(total, sweep<C>(c, s, end, static_cast<C>(total.mean), tile));
    }
    return total;
  }

  void normalise(const Coefficients<C>& k, std::int64_t n, std::int64_t c, std::int64_t i0,
                 std::int64_t length, T* tile) const {
    const T* from = x.get(n, c, i0, length, tile);
    const T* add = kResidual ? residual.get(n, c, i0, length, tile + kSegment) : nullptr;
    T* to = static_cast<T*>(p.out.data) + n * p.out.outer_stride + c * p.out.channel_stride + i0;
    const auto center = splat<C>(k.center), scale = splat<C>(k.scale), shift = splat<C>(k.shift);
    each_vector<C>(length, stream && can_stream(to, length),
                   [&](int, std::int64_t i, auto access, ivec<C>) CONVNORM_INLINE {
                     vec<C> y = (access.get(from + i) - center) * scale + shift;
                     if constexpr (kResidual) y += access.get(add + i);
                     if constexpr (kRelu) y = relu(y);
                     access.put(to + i, y);
                   });
  }

  // Channels from end to end; the planes that were summed last are the likeliest to be in cache.
  void whole_channels() const {
    const std::int64_t blocks = ceil_div(g.channels, g.block);
    const std::int64_t grain = imax(1, kGrain / (g.outer * g.inner * g.block));
    parallel_for(blocks, grain, [&](std::int64_t begin, std::int64_t end) {
      T* tile = tiles();
      Coefficients<C> k[kMostBlock];
      for (std::int64_t b = begin; b < end; ++b) {
        const std::int64_t c0 = b * g.block, width = imin(g.block, g.channels - c0);
        for (std::int64_t c = 0; c < width; ++c) {
          set_statistics(c0 + c, statistics(c0 + c, 0, g.segments, tile));
          k[c] = coefficients<C>(p, c0 + c);
        }
        for (std::int64_t s = g.segments - 1; s >= 0; --s)
          for (std::int64_t c = 0; c < width; ++c)
            normalise(k[c], g.plane(s), c0 + c, g.begin(s), g.length(s), tile);
      }
      stream_fence();
    });
  }

  void set_statistics(std::int64_t c, const Moments& m) const {
    p.mean[c] = m.mean;
    p.var[c] = m.m2 / m.count;
  }

  void chunked_statistics() const {
    auto* partial =
        static_cast<Moments*>(scratch_bytes(Slot::shared, g.channels * g.chunks * sizeof(Moments)));
    parallel_for(g.channels * g.chunks, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t k = t % g.chunks;
        partial[t] = statistics(t / g.chunks, g.first_segment(k), g.first_segment(k + 1), tiles());
      }
    });
    for (std::int64_t c = 0; c < g.channels; ++c) {
      Moments total;
      for (std::int64_t k = 0; k < g.chunks; ++k) merge(total, partial[c * g.chunks + k]);
      set_statistics(c, total);
    }
  }

  void in_memory_order() const {
    auto* k =
        static_cast<Coefficients<C>*>(scratch_bytes(Slot::shared, g.channels * sizeof(Coefficients<C>)));
    for (std::int64_t c = 0; c < g.channels; ++c) k[c] = coefficients<C>(p, c);
    parallel_for(g.segments * g.channels, imax(1, kGrain / imin(kSegment, g.inner)),
                 [&](std::int64_t begin, std::int64_t end) {
                   T* tile = tiles();
                   std::int64_t c = begin / g.per_plane % g.channels, n = begin / g.per_plane / g.channels;
                   std::int64_t s = begin % g.per_plane;
                   for (std::int64_t t = begin; t < end; ++t) {
                     normalise(k[c], n, c, s * kSegment, g.length(s), tile);
                     if (++s < g.per_plane) continue;
                     s = 0;
                     if (++c == g.channels) c = 0, ++n;
                   }
                   stream_fence();
                 });
  }

  void run() const {
    if (p.train && g.chunks == 1) return whole_channels();
    if (p.train) chunked_statistics();
    in_memory_order();
  }
};

// Two sums over a channel (g and g xhat), then one write; the same tasks as forward.
template <class T, Mask kMask>
struct PlanesBackward {
  using C = compute_t<T>;
  struct Sums {
    double g = 0, gx = 0;
  };
  const Backward& p;
  const Planes g;
  const PlaneSource<T> grad, x, out;
  const bool stream;

  explicit PlanesBackward(const Backward& params)
      : p(params),
        g(p.x),
        grad(p.grad_output),
        x(p.x),
        out(p.out),
        stream(g.channels * g.outer * g.inner * static_cast<std::int64_t>(sizeof(T)) >= kStreamBytes) {}

  static T* tiles() { return static_cast<T*>(scratch_bytes(Slot::local, 3 * kSegment * sizeof(T))); }

  struct Segment {
    const T *grad, *x, *out;
    std::int64_t n, begin, length;
  };

  Segment segment(std::int64_t n, std::int64_t c, std::int64_t begin, std::int64_t length, T* tile) const {
    return {grad.get(n, c, begin, length, tile),
            x.get(n, c, begin, length, tile + kSegment),
            kMask == Mask::from_out ? out.get(n, c, begin, length, tile + 2 * kSegment) : nullptr,
            n,
            begin,
            length};
  }

  // In double throughout: converting costs less than the memory it waits for, and grad_weight is a difference
  // of large sums.
  Sums sums(std::int64_t c, std::int64_t s0, std::int64_t s1, T* tile) const {
    const auto k = coefficients<C>(p, c);
    Wide<C> mean;
    for (vec<double>& part : mean.part) part = splat<double>(p.mean[c]);
    PairSums<C> ways[2];
    for (std::int64_t s = s0; s < s1; ++s) {
      const Segment from = segment(g.plane(s), c, g.begin(s), g.length(s), tile);
      each_vector<C>(from.length, false,
                     [&](int way, std::int64_t i, auto access, ivec<C> on) CONVNORM_INLINE {
                       const vec<C> xv = access.get(from.x + i);
                       vec<C> gv = access.get(from.grad + i);
                       if constexpr (kMask == Mask::from_x)
                         gv = (xv - k.center) * k.scale + k.shift <= C(0) ? vec<C>{} : gv;
                       if constexpr (kMask == Mask::from_out)
                         gv = access.get(from.out + i) <= C(0) ? vec<C>{} : gv;
                       ways[way % 2].add(masked<C>(gv, on), xv, mean);
                     });
    }
    const double r = 1 / __builtin_sqrt(p.var[c] + p.eps);
    Sums total;
    for (const PairSums<C>& way : ways)
      for (int i = 0; i < kLanes<C>; ++i) total.g += way.g_lane(i), total.gx += r * way.dot_lane(i);
    return total;
  }

  void update(const Coefficients<C>& k, const Slopes<C>& b, std::int64_t c, const Segment& from) const {
    const NormView& to = p.grad_input.data ? p.grad_input : p.grad_residual;
    const std::int64_t at = from.n * to.outer_stride + c * to.channel_stride + from.begin;
    T* grad_input = p.grad_input.data ? static_cast<T*>(p.grad_input.data) + at : nullptr;
    T* grad_residual = p.grad_residual.data ? static_cast<T*>(p.grad_residual.data) + at : nullptr;
    const T* aligned = grad_input ? grad_input : grad_residual;
    each_vector<C>(from.length, stream && can_stream(aligned, from.length),
                   [&](int, std::int64_t i, auto access, ivec<C>) CONVNORM_INLINE {
                     const vec<C> d = access.get(from.x + i) - k.center;
                     vec<C> gv = access.get(from.grad + i);
                     if constexpr (kMask == Mask::from_x) gv = d * k.scale + k.shift <= C(0) ? vec<C>{} : gv;
                     if constexpr (kMask == Mask::from_out)
                       gv = access.get(from.out + i) <= C(0) ? vec<C>{} : gv;
                     if (grad_residual) access.put(grad_residual + i, gv);
                     if (grad_input)
                       access.put(grad_input + i, gv * b.slope - b.level - (d * k.inv + k.rest) * b.along);
                   });
  }

  bool writes() const { return p.grad_input.data || p.grad_residual.data; }
  bool needs_sums() const { return p.want_affine || (p.train && p.grad_input.data); }

  void write(std::int64_t c0, std::int64_t width, std::int64_t s0, std::int64_t s1, T* tile) const {
    if (!writes()) return;
    Coefficients<C> k[kMostBlock];
    Slopes<C> b[kMostBlock];
    for (std::int64_t c = 0; c < width; ++c) {
      k[c] = coefficients<C>(p, c0 + c);
      b[c] = slopes<C>(p, c0 + c);
    }
    for (std::int64_t s = s1 - 1; s >= s0; --s)
      for (std::int64_t c = 0; c < width; ++c)
        update(k[c], b[c], c0 + c, segment(g.plane(s), c0 + c, g.begin(s), g.length(s), tile));
  }

  void set_sums(std::int64_t c, const Sums& sums) const {
    p.grad_bias[c] = sums.g;
    p.grad_weight[c] = sums.gx;
  }

  void whole_channels() const {
    const std::int64_t blocks = ceil_div(g.channels, g.block);
    const std::int64_t grain = imax(1, kGrain / (g.outer * g.inner * g.block));
    parallel_for(blocks, grain, [&](std::int64_t begin, std::int64_t end) {
      T* tile = tiles();
      for (std::int64_t b = begin; b < end; ++b) {
        const std::int64_t c0 = b * g.block, width = imin(g.block, g.channels - c0);
        for (std::int64_t c = c0; c < c0 + width && needs_sums(); ++c)
          set_sums(c, sums(c, 0, g.segments, tile));
        write(c0, width, 0, g.segments, tile);
      }
      stream_fence();
    });
  }

  template <class F>
  void each_chunk(F f) const {
    parallel_for(g.channels * g.chunks, 1, [&](std::int64_t begin, std::int64_t end) {
      T* tile = tiles();
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t k = t % g.chunks;
        f(t, t / g.chunks, g.first_segment(k), g.first_segment(k + 1), tile);
      }
      stream_fence();
    });
  }

  void chunked_sums() const {
    auto* partial = static_cast<Sums*>(scratch_bytes(Slot::shared, g.channels * g.chunks * sizeof(Sums)));
    each_chunk([&](std::int64_t t, std::int64_t c, std::int64_t s0, std::int64_t s1, T* tile) {
      partial[t] = sums(c, s0, s1, tile);
    });
    for (std::int64_t c = 0; c < g.channels; ++c) {
      Sums total;
      for (std::int64_t k = 0; k < g.chunks; ++k) {
        total.g += partial[c * g.chunks + k].g;
        total.gx += partial[c * g.chunks + k].gx;
      }
      set_sums(c, total);
    }
  }

  void run() const {
    if (g.chunks == 1) return whole_channels();
    if (needs_sums()) chunked_sums();
    each_chunk([&](std::int64_t, std::int64_t c, std::int64_t s0, std::int64_t s1, T* tile) {
      write(c, 1, s0, s1, tile);
    });
  }
};

}  // namespace
}  // namespace convnorm::batch_norm
