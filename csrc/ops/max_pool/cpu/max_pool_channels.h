// Max pooling with vectors over channels: channels_last.
//
//   task = one output row; its pixels one after the other, a block of kUnroll vectors of channels at a time, whose best
//   values and codes stay in registers over all taps. The taps of a pixel are a list of (source offset, code) that is
//   rebuilt only where the border cuts the window differently; so the inner loop has no bounds checks. A channel count
//   that is no multiple of the vector ends with a vector that overlaps the one before it.
//
// The backward gathers: each input pixel looks at the windows that cover it and adds the gradients of those that
// recorded it, in row-major order of the windows; each gradient is written once.
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
inline __attribute__((always_inline)) void pool_channels(const T* from, const Tap* tap, std::int64_t taps, T* to,
                                                         A* argmax, std::int64_t base) {
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
inline void pool_pixel(std::int64_t channels, const T* from, const Tap* tap, std::int64_t taps, T* to, A* argmax,
                       std::int64_t base) {
  constexpr int lanes = kLanes<compute_t<T>>;
  const auto skip = [argmax](std::int64_t c) {
    if constexpr (std::is_void_v<A>) return argmax;
    else return argmax + c;
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
void pool_row(const Params& p, std::int64_t n, std::int64_t od, std::int64_t oh, const T* input, T* output, A* argmax,
              Tap* tap) {
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
  parallel_for(p.n * p.out[0] * p.out[1], ceil_div(32768, row_cost + 1), [&](std::int64_t begin, std::int64_t end) {
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

// --- backward -------------------------------------------------------------------------------------------------

// A window that covers an input position: where its gradient and record are, and the code that would name the position.
struct Cover {
  std::int64_t grad, argmax, code;
};

// The windows of one dimension that cover coordinate i, in order: f(o, tap).
template <class F>
inline void covering(const Params& p, int d, std::int64_t i, F&& f) {
  const Window& w = p.window;
  const std::int64_t low = i + w.pad[d] - (reach(w, d) - 1);
  const std::int64_t end = imin(p.out[d], (i + w.pad[d]) / w.stride[d] + 1);
  for (std::int64_t o = low > 0 ? ceil_div(low, w.stride[d]) : 0; o < end; ++o) {
    const std::int64_t distance = i + w.pad[d] - o * w.stride[d];
    if (distance % w.dil[d] == 0) f(o, distance / w.dil[d]);
  }
}

template <int kVectors, class T, class A>
inline __attribute__((always_inline)) void sum_channels(const Cover* cover, std::int64_t covers, const T* grad_output,
                                                        const A* argmax, T* grad_input) {
  using C = compute_t<T>;
  vec<C> sum[kVectors] = {};
  for (std::int64_t k = 0; k < covers; ++k) {
    const auto code = splat_code<C>(cover[k].code);
    for (int u = 0; u < kVectors; ++u) {
      const vec<C> g = load(grad_output + cover[k].grad + u * kLanes<C>);
      const ivec<C> a = load_codes<C>(argmax + cover[k].argmax + u * kLanes<C>);
      sum[u] += a == code ? g : vec<C>{};
    }
  }
  for (int u = 0; u < kVectors; ++u) store(grad_input + u * kLanes<C>, sum[u]);
}

// The covering windows of a whole input row, one list per pixel: [row[iw], row[iw + 1]).
struct CoverLists {
  Cover* cover;
  std::int64_t* row;
};

template <bool kIndex>
inline void list_covers(const Params& p, std::int64_t id, std::int64_t ih, CoverLists lists) {
  const Window& k = p.window;
  const Strides &sg = p.output, &sa = p.argmax;
  std::int64_t n = 0;
  for (std::int64_t iw = 0; iw < p.in[2]; ++iw) {
    lists.row[iw] = n;
    covering(p, 0, id, [&](std::int64_t od, std::int64_t td) {
      covering(p, 1, ih, [&](std::int64_t oh, std::int64_t th) {
        covering(p, 2, iw, [&](std::int64_t ow, std::int64_t tw) {
          lists.cover[n++] = {od * sg.s[0] + oh * sg.s[1] + ow * sg.s[2], od * sa.s[0] + oh * sa.s[1] + ow * sa.s[2],
                              kIndex ? (id * p.in[1] + ih) * p.in[2] + iw : (td * k.kernel[1] + th) * k.kernel[2] + tw};
        });
      });
    });
  }
  lists.row[p.in[2]] = n;
}

template <class T, class A>
inline void sum_row(const Params& p, CoverLists lists, const T* grad_output, const A* argmax, T* grad_input) {
  constexpr int lanes = kLanes<compute_t<T>>;
  for (std::int64_t iw = 0; iw < p.in[2]; ++iw) {
    const Cover* cover = lists.cover + lists.row[iw];
    const std::int64_t covers = lists.row[iw + 1] - lists.row[iw];
    T* to = grad_input + iw * p.input.s[2];
    std::int64_t c = 0;
    for (; c + kUnroll * lanes <= p.c; c += kUnroll * lanes)
      sum_channels<kUnroll>(cover, covers, grad_output + c, argmax + c, to + c);
    for (; c < p.c; c += lanes) {
      const std::int64_t at = imin(c, p.c - lanes);
      sum_channels<1>(cover, covers, grad_output + at, argmax + at, to + at);
    }
  }
}

// Windows that cover one input position along d, at most.
inline std::int64_t most_covers(const Params& p, int d) {
  return imin(p.out[d], imin(p.window.kernel[d], ceil_div(reach(p.window, d), p.window.stride[d])));
}

template <class T, class A>
void backward_channels_of(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  const std::int64_t covers = most_covers(p, 0) * most_covers(p, 1) * most_covers(p, 2);
  parallel_for(p.n * p.in[0] * p.in[1], ceil_div(32768, p.in[2] * p.c * covers + 1), [&](std::int64_t begin, std::int64_t end) {
    Arena arena;
    const auto carve = [&] {
      Cover* cover = arena.take<Cover>(p.in[2] * covers);
      return CoverLists{cover, arena.take<std::int64_t>(p.in[2] + 1)};
    };
    carve();
    arena = {static_cast<char*>(scratch_bytes(Slot::local, arena.used)), 0};
    const CoverLists lists = carve();
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t n = task / p.in[1] / p.in[0], id = task / p.in[1] % p.in[0], ih = task % p.in[1];
      list_covers<std::is_same_v<A, std::int64_t>>(p, id, ih, lists);
      sum_row(p, lists, static_cast<const T*>(grad_output) + n * p.output.n,
              static_cast<const A*>(argmax) + n * p.argmax.n,
              static_cast<T*>(grad_input) + n * p.input.n + id * p.input.s[0] + ih * p.input.s[1]);
    }
  });
}

void backward_channels(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto t) {
    with_argmax(p.record, [&](auto* a) {
      using A = std::remove_pointer_t<decltype(a)>;
      if constexpr (!std::is_void_v<A>) backward_channels_of<decltype(t), A>(p, grad_output, argmax, grad_input);
    });
  });
}

}  // namespace
}  // namespace convnorm::max_pool
