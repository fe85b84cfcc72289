// Max pooling with vectors over channels: channels_last.
//
//   task = one output row; its pixels one after the other, a block of kUnroll vectors of channels at a time,
//   whose best values and codes stay in registers over all taps. The taps of a pixel are a list of (source
//   offset, code) that is rebuilt only where the border cuts the window differently; so the inner loop has no
//   bounds checks. A channel count that is no multiple of the vector ends with a vector that overlaps the one
//   before it.
#pragma once

namespace convnorm::max_pool {
namespace {

constexpr int kUnroll = 4;  // 4 values, 4 codes, and room for a mask and a load in 16 registers

struct Tap {
  std::int64_t source;  // elements from the window's (possibly outside) first position
  std::int64_t code;
};

// Offsets, or indices relative to the window's first position.
template <bool kIndex>
inline std::int64_t list_taps(const Params& p, Taps d, Taps h, Taps w, Tap* tap) {
  const Window& k = p.window;
  std::int64_t n = 0;
  for (std::int64_t td = d.begin; td < d.end; ++td)
    for (std::int64_t th = h.begin; th < h.end; ++th)
      for (std::int64_t tw = w.begin; tw < w.end; ++tw) {
        const std::int64_t id = td * k.dil[0], ih = th * k.dil[1], iw = tw * k.dil[2];
        tap[n++] = {id * p.input.s[0] + ih * p.input.s[1] + iw * p.input.s[2],
                    kIndex ? (id * p.in[1] + ih) * p.in[2] + iw : (td * k.kernel[1] + th) * k.kernel[2] + tw};
      }
  return n;
}

template <int kVectors, class T, class A>
inline __attribute__((always_inline)) void pool_channels(const T* from, const Tap* tap, std::int64_t taps,
                                                         T* to, A* argmax, std::int64_t base) {
  using C = compute_t<T>;
  constexpr bool kRecord = !std::is_void_v<A>;
  Best<C> best[kVectors];
  for (int u = 0; u < kVectors; ++u)
    best[u] = {load(from + tap[0].source + u * kLanes<C>), splat_code<C>(tap[0].code)};
  for (std::int64_t t = 1; t < taps; ++t) {
    const T* x = from + tap[t].source;
    const auto code = splat_code<C>(tap[t].code);
    for (int u = 0; u < kVectors; ++u) take<kRecord>(best[u], load(x + u * kLanes<C>), code);
  }
  for (int u = 0; u < kVectors; ++u) {
    store(to + u * kLanes<C>, best[u].value);
    if constexpr (std::is_same_v<A, std::int64_t>) {
      typedef std::int64_t Wide __attribute__((vector_size(kLanes<C> * 8)));
      const Wide index = __builtin_convertvector(best[u].code, Wide) + base;
      __builtin_memcpy(argmax + u * kLanes<C>, &index, sizeof(index));
    } else if constexpr (kRecord) {
      store_codes<C>(argmax + u * kLanes<C>, best[u].code);
    }
  }
}

template <class T, class A>
inline void pool_pixel(std::int64_t channels, const T* from, const Tap* tap, std::int64_t taps, T* to,
                       A* argmax, std::int64_t base) {
  constexpr int lanes = kLanes<compute_t<T>>;
  const auto skip = [argmax](std::int64_t c) {
    if constexpr (std::is_void_v<A>)
      return argmax;
    else
      return argmax + c;
  };
  std::int64_t c = 0;
  for (; c + kUnroll * lanes <= channels; c += kUnroll * lanes)
    pool_channels<kUnroll>(from + c, tap, taps, to + c, skip(c), base);
  for (; c < channels; c += lanes) {
    const std::int64_t at = imin(c, channels - lanes);
    pool_channels<1>(from + at, tap, taps, to + at, skip(at), base);
  }
}

template <class T, class A>
void pool_row(const Params& p, std::int64_t n, std::int64_t od, std::int64_t oh, const T* input, T* output,
              A* argmax, Tap* tap) {
  constexpr bool kIndex = std::is_same_v<A, std::int64_t>;
  const Strides &si = p.input, &so = p.output, &sa = p.argmax;
  const std::int64_t d0 = at(p, 0, od, 0), h0 = at(p, 1, oh, 0);
  const Taps d = taps_inside(p, 0, od), h = taps_inside(p, 1, oh);
  Taps listed{0, 0};
  std::int64_t taps = 0;
  for (std::int64_t ow = 0; ow < p.out[2]; ++ow) {
    const std::int64_t w0 = at(p, 2, ow, 0);
    const Taps w = taps_inside(p, 2, ow);
    if (!(w == listed)) taps = list_taps<kIndex>(p, d, h, w, tap);
    listed = w;
    const T* from = input + n * si.n + d0 * si.s[0] + h0 * si.s[1] + w0 * si.s[2];
    T* to = output + n * so.n + od * so.s[0] + oh * so.s[1] + ow * so.s[2];
    A* arg = argmax;
    if constexpr (!std::is_void_v<A>) arg += n * sa.n + od * sa.s[0] + oh * sa.s[1] + ow * sa.s[2];
    pool_pixel(p.c, from, tap, taps, to, arg, (d0 * p.in[1] + h0) * p.in[2] + w0);
  }
}

template <class T, class A>
void forward_channels_of(const Params& p, const void* input, void* output, void* argmax) {
  const std::int64_t row_cost = p.out[2] * p.c * positions(p.window);
  parallel_for(
      p.n * p.out[0] * p.out[1], ceil_div(32768, row_cost + 1), [&](std::int64_t begin, std::int64_t end) {
        auto* tap = static_cast<Tap*>(scratch_bytes(Slot::local, positions(p.window) * sizeof(Tap)));
        for (std::int64_t task = begin; task < end; ++task)
          pool_row(p, task / p.out[1] / p.out[0], task / p.out[1] % p.out[0], task % p.out[1],
                   static_cast<const T*>(input), static_cast<T*>(output), static_cast<A*>(argmax), tap);
      });
}

void forward_channels(const Params& p, const void* input, void* output, void* argmax) {
  dispatch(p.dtype, [&](auto t) {
    with_argmax(p.record, [&](auto* a) {
      forward_channels_of<decltype(t), std::remove_pointer_t<decltype(a)>>(p, input, output, argmax);
    });
  });
}

}  // namespace
}  // namespace convnorm::max_pool
