// Backward of max pooling, one plane after the other: outputs in row-major order, each gradient added where
// its tap was.
//
// A plane is zeroed row by row just ahead of the windows that can reach it, so that zeroing and adding meet
// in cache. 16-bit gradients, and planes that are not dense (channels_last), are summed in a dense plane of
// scratch and rounded once.
#include "ops/max_pool/max_pool.h"

#include "cpu/target_generic.h"

#include "ops/max_pool/cpu/max_pool_scalar.h"

namespace convnorm::max_pool {
namespace {

template <class C>
struct Sums {
  C* data;
  std::int64_t row, rows;   // elements of a row, rows in the plane
  std::int64_t least;       // rows zeroed at a time: 16 KB, so that narrow planes take one step
  std::int64_t zeroed = 0;  // rows that are ready

  void zero_to(std::int64_t end) {
    if (end <= zeroed) return;
    end = imin(rows, imax(end, zeroed + least));
    std::memset(data + zeroed * row, 0, (end - zeroed) * row * sizeof(C));
    zeroed = end;
  }
};

// From the window's first position to tap t, in elements of the plane. A byte that names no tap leads out of
// the plane.
const std::int64_t* tap_distances(const Params& p) {
  const Window& w = p.window;
  const std::int64_t entries = p.record == Argmax::offset8 ? 256 : positions(w);
  auto* distance = static_cast<std::int64_t*>(scratch_bytes(Slot::shared, entries * sizeof(std::int64_t)));
  std::int64_t* next = distance;
  for (std::int64_t d = 0; d < w.kernel[0]; ++d)
    for (std::int64_t h = 0; h < w.kernel[1]; ++h)
      for (std::int64_t i = 0; i < w.kernel[2]; ++i)
        *next++ = (d * w.dil[0] * p.in[1] + h * w.dil[1]) * p.in[2] + i * w.dil[2];
  while (next < distance + entries) *next++ = std::numeric_limits<std::int64_t>::min() / 2;
  return distance;
}

// One output row into the plane. A record that names nothing in the plane adds nothing: it can only come from
// a caller of the raw op.
template <class T, class A, class C>
inline void add_row(const T* grad, std::int64_t grad_step, const A* argmax, std::int64_t argmax_step,
                    std::int64_t n, std::int64_t first, std::int64_t stride, const std::int64_t* distance,
                    std::int64_t taps, C* sums, std::uint64_t size) {
  for (std::int64_t o = 0; o < n; ++o, first += stride) {
    const A code = argmax[o * argmax_step];
    std::int64_t place = code;
    if constexpr (sizeof(A) == 4)
      if (code < 0 || code >= taps) continue;
    if constexpr (sizeof(A) != 8) place = first + distance[code];
    if (static_cast<std::uint64_t>(place) < size) sums[place] += load1(grad + o * grad_step);
  }
}

template <class T, class A>
void scatter_plane(const Params& p, const T* grad, const A* argmax, const std::int64_t* distance, T* to) {
  using C = compute_t<T>;
  const bool in_place = std::is_same_v<T, C> && p.input.s[2] == 1;
  C* data =
      in_place ? reinterpret_cast<C*>(to) : static_cast<C*>(scratch_bytes(Slot::local, plane(p) * sizeof(C)));
  Sums<C> sums{data, p.in[2], p.in[0] * p.in[1], 1 + 16384 / static_cast<std::int64_t>(p.in[2] * sizeof(C))};
  const std::int64_t taps = positions(p.window), gs = p.output.s[2], as = p.argmax.s[2];
  const bool anywhere = std::is_same_v<A, std::int64_t>;  // an index is not bound to its window
  for (std::int64_t od = 0; od < p.out[0]; ++od)
    for (std::int64_t oh = 0; oh < p.out[1]; ++oh) {
      const std::int64_t last_d = imin(p.in[0] - 1, at(p, 0, od, p.window.kernel[0] - 1)),
                         last_h = imin(p.in[1] - 1, at(p, 1, oh, p.window.kernel[1] - 1));
      sums.zero_to(anywhere ? sums.rows : last_d * p.in[1] + last_h + 1);
      const std::int64_t first = (at(p, 0, od, 0) * p.in[1] + at(p, 1, oh, 0)) * p.in[2] + at(p, 2, 0, 0);
      const T* g = grad + od * p.output.s[0] + oh * p.output.s[1];
      const A* arg = argmax + od * p.argmax.s[0] + oh * p.argmax.s[1];
      const auto add = [&](std::int64_t grad_step, std::int64_t argmax_step) {
        add_row(g, grad_step, arg, argmax_step, p.out[2], first, p.window.stride[2], distance, taps, data,
                plane(p));
      };
      gs == 1 && as == 1 ? add(1, 1) : add(gs, as);
    }
  sums.zero_to(sums.rows);
  if (in_place) return;
  for (std::int64_t i = 0; i < plane(p); ++i) store1(to + i * p.input.s[2], data[i]);
}

template <class T, class A>
void scatter(const Params& p, const T* grad_output, const A* argmax, T* grad_input) {
  const std::int64_t* distance = tap_distances(p);
  each_plane(p, [&](std::int64_t n, std::int64_t c) {
    const Dims origin{0, 0, 0};
    scatter_plane(p, grad_output + element(p.output, n, c, origin), argmax + element(p.argmax, n, c, origin),
                  distance, grad_input + element(p.input, n, c, origin));
  });
}

}  // namespace

void backward_scatter(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto go = [&](auto* codes) {
      scatter(p, static_cast<const T*>(grad_output), codes, static_cast<T*>(grad_input));
    };
    switch (p.record) {
      case Argmax::offset8:
        return go(static_cast<const std::uint8_t*>(argmax));
      case Argmax::offset32:
        return go(static_cast<const std::int32_t*>(argmax));
      default:
        return go(static_cast<const std::int64_t*>(argmax));
    }
  });
}

}  // namespace convnorm::max_pool
