// Backward of max pooling, a few planes at a time: outputs in row-major order, each gradient added where its
// tap was.
//
// Neighbouring windows often share their maximum, and adding to what was stored just before waits for the
// store. So planes take turns, output by output: their chains of additions overlap. Where windows do not
// overlap each gradient is alone and is stored, not added.
//
// Planes are zeroed row by row just ahead of the windows that can reach them, so that zeroing and adding meet
// in cache. 16-bit sums, and planes that are not dense (channels_last), are made in dense planes of scratch
// and rounded once.
#include "ops/max_pool/max_pool.h"

#include "cpu/target_generic.h"

#include "ops/max_pool/cpu/max_pool_scalar.h"

namespace convnorm::max_pool {
namespace {

constexpr int kTurns = 4;  // planes that take turns

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

template <class T, class S>
inline void store_sum(T* to, S sum) {
  if constexpr (std::is_same_v<T, S>)
    *to = sum;
  else
    store1(to, sum);
}

inline bool windows_overlap(const Params& p) {
  for (int d = 0; d < kSpatial; ++d)
    if (reach(p.window, d) > p.window.stride[d] && p.out[d] > 1) return true;
  return false;
}

// Where output row (od, oh) begins, and where its first window does in the plane.
struct OutputRow {
  std::int64_t grad, argmax, first;
};

// What a plane takes part with.
template <class T, class A, class S>
struct Plane {
  const T* grad;
  const A* argmax;
  S* sums;
};

// T: gradients, A: records, S: what is summed in.
template <class T, class A, class S, bool kOverlap>
struct Scatter {
  const Params& p;
  const std::int64_t* distance;

  // One output row of kPlanes planes in turns. A record that names nothing in the plane adds nothing: it can
  // only come from a caller of the raw op.
  template <int kPlanes>
  inline __attribute__((always_inline)) void row(const Plane<T, A, S>* plane_at, OutputRow at,
                                                 std::int64_t grad_step, std::int64_t argmax_step) const {
    Plane<T, A, S> q[kPlanes];
    for (int k = 0; k < kPlanes; ++k)
      q[k] = {plane_at[k].grad + at.grad, plane_at[k].argmax + at.argmax, plane_at[k].sums};
    const std::int64_t n = p.out[2], stride = p.window.stride[2], taps = positions(p.window);
    const std::int64_t* const to_tap = distance;
    const auto size = static_cast<std::uint64_t>(plane(p));
    std::int64_t first = at.first;
    for (std::int64_t o = 0; o < n; ++o, first += stride)
#pragma GCC unroll 4
      for (int k = 0; k < kPlanes; ++k) {
        const A code = q[k].argmax[o * argmax_step];
        std::int64_t place = code;
        if constexpr (sizeof(A) == 4)
          if (code < 0 || code >= taps) continue;
        if constexpr (sizeof(A) != 8) place = first + to_tap[code];
        if (static_cast<std::uint64_t>(place) >= size) continue;
        if constexpr (kOverlap)
          q[k].sums[place] += load1(q[k].grad + o * grad_step);
        else
          q[k].sums[place] = q[k].grad[o * grad_step];
      }
  }

  template <int kPlanes>
  void planes(const Plane<T, A, S>* q) const {
    const std::int64_t gs = p.output.s[2], as = p.argmax.s[2];
    const std::int64_t rows = p.in[0] * p.in[1];
    const std::int64_t least = 1 + 16384 / static_cast<std::int64_t>(kPlanes * p.in[2] * sizeof(S));
    const bool anywhere = std::is_same_v<A, std::int64_t>;  // an index is not bound to its window
    std::int64_t zeroed = 0;
    const auto zero_to = [&](std::int64_t end) {
      if (end <= zeroed) return;
      end = imin(rows, imax(end, zeroed + least));
      for (int k = 0; k < kPlanes; ++k)
        std::memset(q[k].sums + zeroed * p.in[2], 0, (end - zeroed) * p.in[2] * sizeof(S));
      zeroed = end;
    };
    for (std::int64_t od = 0; od < p.out[0]; ++od)
      for (std::int64_t oh = 0; oh < p.out[1]; ++oh) {
        const std::int64_t last_d = imin(p.in[0] - 1, at(p, 0, od, p.window.kernel[0] - 1)),
                           last_h = imin(p.in[1] - 1, at(p, 1, oh, p.window.kernel[1] - 1));
        zero_to(anywhere ? rows : last_d * p.in[1] + last_h + 1);
        const OutputRow here{od * p.output.s[0] + oh * p.output.s[1], od * p.argmax.s[0] + oh * p.argmax.s[1],
                             (at(p, 0, od, 0) * p.in[1] + at(p, 1, oh, 0)) * p.in[2] + at(p, 2, 0, 0)};
        gs == 1 && as == 1 ? row<kPlanes>(q, here, 1, 1) : row<kPlanes>(q, here, gs, as);
      }
    zero_to(rows);
  }
};

template <class T, class A, class S, bool kOverlap>
void scatter(const Params& p, const T* grad_output, const A* argmax, T* grad_input) {
  const Scatter<T, A, S, kOverlap> scatter{p, tap_distances(p)};
  const bool in_place = std::is_same_v<S, T> && p.input.s[2] == 1;
  const std::int64_t count = p.n * p.c, size = plane(p);
  const std::int64_t turns = count < 16 * kTurns ? 1 : kTurns;  // few planes: one each for all threads
  parallel_for(ceil_div(count, turns), 1, [&](std::int64_t begin, std::int64_t end) {
    S* const scratch =
        in_place ? nullptr : static_cast<S*>(scratch_bytes(Slot::local, turns * size * sizeof(S)));
    for (std::int64_t first = begin * turns; first < imin(count, end * turns); first += turns) {
      const std::int64_t planes = imin(turns, count - first);
      Plane<T, A, S> q[kTurns];
      T* to[kTurns];
      for (std::int64_t k = 0; k < planes; ++k) {
        const std::int64_t n = (first + k) / p.c, c = (first + k) % p.c;
        to[k] = grad_input + n * p.input.n + c * p.input.c;
        q[k] = {grad_output + n * p.output.n + c * p.output.c, argmax + n * p.argmax.n + c * p.argmax.c,
                in_place ? reinterpret_cast<S*>(to[k]) : scratch + k * size};
      }
      if (planes == kTurns)
        scatter.template planes<kTurns>(q);
      else
        for (std::int64_t k = 0; k < planes; ++k) scatter.template planes<1>(q + k);
      if (in_place) continue;
      for (std::int64_t k = 0; k < planes; ++k)
        for (std::int64_t i = 0; i < size; ++i) store_sum(to[k] + i * p.input.s[2], q[k].sums[i]);
    }
  });
}

// Sums are made in float or double; without overlap there is nothing to round.
template <class T, class A>
void scatter_by_overlap(const Params& p, const T* grad_output, const A* argmax, T* grad_input) {
  if (windows_overlap(p))
    scatter<T, A, compute_t<T>, true>(p, grad_output, argmax, grad_input);
  else
    scatter<T, A, T, false>(p, grad_output, argmax, grad_input);
}

}  // namespace

void backward_scatter(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto go = [&](auto* codes) {
      scatter_by_overlap(p, static_cast<const T*>(grad_output), codes, static_cast<T*>(grad_input));
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
