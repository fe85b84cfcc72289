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
inline constexpr std::int64_t kRun = 4096;  // elements: shorter planes are written in blocks of channels, ...
inline constexpr std::int64_t kMostBlock = 16;   // ... one run of memory per image, ...
inline constexpr std::int64_t kInCache = 32768;  // ... as long as two operands of so many elements stay in L2
inline constexpr std::int64_t kFirst = 128;      // elements, at least, that give the first shift
inline constexpr std::int64_t kGrain = 32768;    // elements that are worth a thread's attention

struct Planes {
  std::int64_t channels, outer, inner;
  std::int64_t per_plane, segments;  // of a channel
  std::int64_t group;                // segments summed before a merge
  std::int64_t chunks;               // of a channel
  std::int64_t block, blocks;        // channels that are written together, image by image; their number

  Planes(const NormView& x, std::int64_t of_channels) : channels(x.channels), outer(x.outer), inner(x.inner) {
    per_plane = ceil_div(inner, kSegment);
    segments = outer * per_plane;
    group = imax(1, kSegment / inner);
    const std::int64_t most = imin(imax(1, outer * inner / kChunk), segments);
    const std::int64_t fits = imax(1, kInCache / (outer * inner));
    blocks = ceil_div(channels, imin(imin(kMostBlock, fits), ceil_div(kRun, inner)));
    block = ceil_div(channels, blocks);
    chunks = of_channels >= kEnoughTasks ? 1 : imin(ceil_div(kEnoughTasks, of_channels), most);
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
  const T* const data;
  const std::int64_t outer_stride, channel_stride;
  const bool direct;

  explicit PlaneSource(const NormView& view)
      : v(view),
        data(static_cast<const T*>(view.data)),
        outer_stride(view.outer_stride),
        channel_stride(view.channel_stride),
        direct(is_planes(view)) {}

  const T* get(std::int64_t n, std::int64_t c, std::int64_t i0, std::int64_t length, T* tile) const {
    const T* base = data + n * outer_stride + c * channel_stride;
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
        g(p.x, deciding_channels(p)),
        x(p.x),
        residual(p.residual),
        stream(worth_streaming<T>(p, kResidual ? 3 : 2)) {}

  static Arena local() {
    const std::int64_t tiles = 2 * kSegment * sizeof(T);
    return {static_cast<char*>(scratch_bytes(Slot::local, tiles + Coefficients<C>::bytes(1)))};
  }

  template <class A>
  Moments sweep(std::int64_t c, std::int64_t s0, std::int64_t s1, double shift, T* tile) const {
    BlockSums<C, A> sums(shift);
    std::int64_t count = 0;
    for (std::int64_t s = s0; s < s1; ++s) {
      const std::int64_t length = g.length(s);
      const T* from = x.get(g.plane(s), c, g.begin(s), length, tile);
      each_vector_in_quarters<C>(length, [&](int way, std::int64_t i, auto access, ivec<C> on)
                                             CONVNORM_INLINE { sums.add(way, access.get(from + i), on); });
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

  // at: the coefficients of channel c.
  void normalise(const C* at, std::int64_t n, std::int64_t c, std::int64_t i0, std::int64_t length,
                 T* tile) const {
    const Coefficients<C> k(const_cast<C*>(at));
    const T* from = x.get(n, c, i0, length, tile);
    const T* add = kResidual ? residual.get(n, c, i0, length, tile + kSegment) : nullptr;
    T* to = static_cast<T*>(p.out.data) + n * p.out.outer_stride + c * p.out.channel_stride + i0;
    const auto center = splat<C>(*k.center()), scale = splat<C>(*k.scale()), shift = splat<C>(*k.shift());
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
    const std::int64_t grain = imax(1, kGrain / (g.outer * g.inner * g.block));
    parallel_for(g.blocks, grain, [&](std::int64_t begin, std::int64_t end) {
      Arena arena = local();
      const Coefficients<C> k(arena, 1);
      T* tile = arena.take<T>(2 * kSegment);
      for (std::int64_t b = begin; b < end; ++b) {
        const std::int64_t c0 = b * g.block, width = imin(g.block, g.channels - c0);
        for (std::int64_t c = c0; c < c0 + width; ++c) set_statistics(c, statistics(c, 0, g.segments, tile));
        if (!p.out.data) continue;
        forward_coefficients(p, c0, width, k);
        for (std::int64_t s = g.segments - 1; s >= 0; --s)
          for (std::int64_t c = 0; c < width; ++c)
            normalise(k.at + c, g.plane(s), c0 + c, g.begin(s), g.length(s), tile);
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
      T* tile = local().template take<T>(2 * kSegment);
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t k = t % g.chunks;
        partial[t] = statistics(t / g.chunks, g.first_segment(k), g.first_segment(k + 1), tile);
      }
    });
    for (std::int64_t c = 0; c < g.channels; ++c) {
      Moments total;
      for (std::int64_t k = 0; k < g.chunks; ++k) merge(total, partial[c * g.chunks + k]);
      set_statistics(c, total);
    }
  }

  void in_memory_order() const {
    const std::int64_t tables = ceil_div(g.channels, Coefficients<C>::kMost);
    Arena shared{static_cast<char*>(scratch_bytes(Slot::shared, Coefficients<C>::bytes(tables)))};
    const Coefficients<C> k(shared, tables);
    all_forward_coefficients(p, g.channels, k);
    parallel_for(g.segments * g.channels, imax(1, kGrain / imin(kSegment, g.inner)),
                 [&](std::int64_t begin, std::int64_t end) {
                   T* tile = local().template take<T>(2 * kSegment);
                   std::int64_t c = begin / g.per_plane % g.channels, n = begin / g.per_plane / g.channels;
                   std::int64_t s = begin % g.per_plane;
                   for (std::int64_t t = begin; t < end; ++t) {
                     normalise(k.channel(c).at, n, c, s * kSegment, g.length(s), tile);
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
    if (p.out.data) in_memory_order();
  }
};

}  // namespace
}  // namespace convnorm::batch_norm
