// Backward of max pooling with vectors over channels where windows tile the image: channels_last.
//
//   task = one output row at one input depth, which is the window's height of input rows. Each of these takes
//          its pixels in the order of memory: the gradients of a window, where their code names the pixel,
//          and zeros elsewhere. So each gradient is written once and no input is read
//
// A pixel's last vector reads and writes on into the next pixel (max_pool_spill.h): 20 channels are three
// vectors of 8.
#pragma once

namespace convnorm::max_pool {
namespace {

// One pixel: `channels` of grad where the code is that of the pixel.
template <class T, class A>
inline __attribute__((always_inline)) void place_pixel(const T* grad, const A* argmax, std::int64_t channels,
                                                       ivec<compute_t<T>> code, T* to) {
  using C = compute_t<T>;
  for (std::int64_t c = 0; c < channels; c += kLanes<C>) {
    const vec<C> g = load(grad + c);
    store(to + c, load_codes<C>(argmax + c) == code ? g : vec<C>{});
  }
}

template <class T, class A>
struct TileSpread {
  static constexpr bool kIndex = std::is_same_v<A, std::int64_t>;
  static constexpr int kWidth = kLanes<compute_t<T>>;

  const Params& p;
  const T* grad_end;
  const A* argmax_end;
  const T* grad_input_end;
  std::int64_t row = p.in[2] * p.c, width = ceil_div(p.c, kWidth) * kWidth;
  T *grad_stage = nullptr, *grad_input_stage = nullptr;
  A* argmax_stage = nullptr;

  void carve(Arena& arena) {
    grad_stage = arena.take<T>(p.out[2] * p.c + kWidth);
    argmax_stage = arena.take<A>(p.out[2] * p.c + kWidth);
    grad_input_stage = arena.take<T>(row + kWidth);
  }

  // Where an output row is, and its pixels' distances.
  struct From {
    const T* grad;
    const A* argmax;
    std::int64_t grad_step, argmax_step;
  };

  // Input row `to`, whose first pixel has the code.
  void spread_row(From from, std::int64_t code, T* to) const {
    const std::int64_t channels = p.c, k_w = p.window.kernel[2], out_w = p.out[2];
    const T* const row_end = to + row;
    for (std::int64_t ow = 0; ow < out_w; ++ow) {
      for (std::int64_t tw = 0; tw < k_w; ++tw, to += channels)
        place_pixel(from.grad, from.argmax, channels, splat_code<compute_t<T>>(code + tw), to);
      if (kIndex) code += k_w;
      from.grad += from.grad_step;
      from.argmax += from.argmax_step;
    }
    if (to != row_end) std::memset(to, 0, (row_end - to) * sizeof(T));
  }

  // The output row in scratch memory, with room behind it.
  From staged(From from) const {
    for (std::int64_t ow = 0; ow < p.out[2]; ++ow) {
      std::memcpy(grad_stage + ow * p.c, from.grad + ow * from.grad_step, p.c * sizeof(T));
      std::memcpy(argmax_stage + ow * p.c, from.argmax + ow * from.argmax_step, p.c * sizeof(A));
    }
    return {grad_stage, argmax_stage, p.c, p.c};
  }

  // The rows under one output row; `code` is that of their first pixel.
  void spread_rows(From from, std::int64_t code, T* to) const {
    if (grad_end - from.grad < (p.out[2] - 1) * from.grad_step + width ||
        argmax_end - from.argmax < (p.out[2] - 1) * from.argmax_step + width)
      from = staged(from);
    for (std::int64_t th = 0; th < p.window.kernel[1]; ++th, to += row) {
      const bool room = grad_input_end - to >= row - p.c + width;
      spread_row(from, code, room ? to : grad_input_stage);
      if (!room) std::memcpy(to, grad_input_stage, row * sizeof(T));
      code += kIndex ? p.in[2] : p.window.kernel[2];
    }
  }

  // Task t of n * in_d * out_h, whose rows begin at `to`.
  void run(std::int64_t t, const T* grad_output, const A* argmax, T* to, const T* to_end) const {
    const Window& w = p.window;
    const std::int64_t n = t / p.out[1] / p.in[0], id = t / p.out[1] % p.in[0], oh = t % p.out[1];
    const std::int64_t od = id / w.kernel[0], td = id % w.kernel[0];
    if (od < p.out[0]) {
      const From from{grad_output + n * p.output.n + od * p.output.s[0] + oh * p.output.s[1],
                      argmax + n * p.argmax.n + od * p.argmax.s[0] + oh * p.argmax.s[1], p.output.s[2],
                      p.argmax.s[2]};
      spread_rows(from, kIndex ? (id * p.in[1] + oh * w.kernel[1]) * p.in[2] : td * w.kernel[1] * w.kernel[2],
                  to);
      to += w.kernel[1] * row;
    }
    if (to != to_end) std::memset(to, 0, (to_end - to) * sizeof(T));
  }
};

template <class T, class A>
void backward_tiles_of(const Params& p, const T* grad_output, const A* argmax, T* grad_input) {
  const std::int64_t row = p.in[2] * p.c, tasks = p.n * p.in[0] * p.out[1];
  // The input rows of a slab that no window covers belong to its last task.
  const auto start = [&](std::int64_t t) {
    return grad_input + (t / p.out[1] * p.in[1] + t % p.out[1] * p.window.kernel[1]) * row;
  };
  parallel_for(tasks, ceil_div(16384, row * p.window.kernel[1]), [&](std::int64_t begin, std::int64_t end) {
    TileSpread<T, A> tiles{p, grad_output + extent(p, p.output, p.out), argmax + extent(p, p.argmax, p.out),
                           start(end)};
    carve_scratch(Slot::local, [&](Arena& arena) { tiles.carve(arena); });
    for (std::int64_t t = begin; t < end; ++t) tiles.run(t, grad_output, argmax, start(t), start(t + 1));
  });
}

void backward_tiles(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto t) {
    with_argmax(p.record, [&](auto* a) {
      using T = decltype(t);
      using A = std::remove_pointer_t<decltype(a)>;
      if constexpr (!std::is_void_v<A>)
        backward_tiles_of(p, static_cast<const T*>(grad_output), static_cast<const A*>(argmax),
                          static_cast<T*>(grad_input));
    });
  });
}

}  // namespace
}  // namespace convnorm::max_pool
