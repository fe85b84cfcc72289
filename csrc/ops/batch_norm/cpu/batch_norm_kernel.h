// What both methods of batch norm share beyond cpu/sweep.h, and the bodies' table. Included by one small file
// per instruction set.
#pragma once

#include "cpu/sweep.h"

namespace convnorm::batch_norm {
namespace {

template <class I>
inline bool all_lanes(I on) {
  bool all = true;
  for (std::size_t i = 0; i < sizeof(I) / sizeof(on[0]); ++i) all &= on[i] != 0;
  return all;
}

// For sums: the ways walk four quarters of a long run side by side. From memory, four streams keep half as
// many more bytes in flight than one; within a page they only hide the order from the hardware's prefetch.
inline constexpr std::int64_t kQuartered = 2048;  // elements

template <class C, class F>
CONVNORM_INLINE inline void each_vector_in_quarters(std::int64_t length, F f) {
  constexpr std::int64_t L = kLanes<C>;
  const std::int64_t groups = length / (4 * L);
  const bool apart = length >= kQuartered;
  const std::int64_t way = apart ? groups * L : L, step = apart ? L : 4 * L;
  const ivec<C> all = ivec<C>{} - 1;
  for (std::int64_t k = 0, i = 0; k < groups; ++k, i += step) {
    f(0, i, Whole{}, all);
    f(1, i + way, Whole{}, all);
    f(2, i + 2 * way, Whole{}, all);
    f(3, i + 3 * way, Whole{}, all);
  }
  each_vector_from<C>(groups * 4 * L, length, f);
}

// Planes of as many whole vectors as 7x7 has, ResNet's last: short enough for what surrounds a loop to
// decide, so their vectors are written out. `last` has the lanes of the last one that the whole ones leave.
template <class C>
inline constexpr std::int64_t kShort = 49 / kLanes<C>;

template <class C>
inline bool is_short(std::int64_t length) {
  return length / kLanes<C> == kShort<C>;
}
template <class C>
inline ivec<C> last_of_short(std::int64_t length) {
  return lanes_from<C>(kLanes<C> - length % kLanes<C>);
}

template <class C, class F>
CONVNORM_INLINE inline void each_vector_of_short(std::int64_t length, ivec<C> last, F f) {
  constexpr std::int64_t L = kLanes<C>;
#pragma GCC unroll 16
  for (int v = 0; v < kShort<C>; ++v) f(v % 4, v * L, Whole{}, ivec<C>{} - 1);
  f(kAlone, length - L, Whole{}, last);
}

// How many channels decide how a channel is cut, and with it the bits of its sums: those of the whole tensor,
// also where a caller takes some of them at a time.
template <class P>
inline std::int64_t deciding_channels(const P& p) {
  return p.of_channels ? p.of_channels : p.x.channels;
}

// Streaming pays once all operands together are larger than a core's share of the caches.
template <class T, class P>
inline bool worth_streaming(const P& p, int operands) {
  return operands * p.x.values() * deciding_channels(p) * static_cast<std::int64_t>(sizeof(T)) >=
         2 * kStreamBytes;
}

enum class Mask { none, from_x, from_out };

inline Mask mask_of(const Backward& p) {
  return !p.relu ? Mask::none : p.out.data ? Mask::from_out : Mask::from_x;
}

}  // namespace
}  // namespace convnorm::batch_norm

#include "ops/batch_norm/cpu/batch_norm_channels.h"
#include "ops/batch_norm/cpu/batch_norm_planes.h"
#include "ops/batch_norm/cpu/batch_norm_planes_backward.h"
#include "ops/batch_norm/cpu/batch_norm_rows.h"
#include "ops/batch_norm/cpu/batch_norm_rows_backward.h"

namespace convnorm::batch_norm {
namespace {

template <template <class, bool, bool> class Method>
void run_forward(const Forward& p) {
  dispatch(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (p.residual.data) return p.relu ? Method<T, true, true>(p).run() : Method<T, true, false>(p).run();
    return p.relu ? Method<T, false, true>(p).run() : Method<T, false, false>(p).run();
  });
}

template <template <class, Mask> class Method>
void run_backward(const Backward& p) {
  dispatch(p.dtype, [&](auto t) {
    using T = decltype(t);
    switch (mask_of(p)) {
      case Mask::none:
        return Method<T, Mask::none>(p).run();
      case Mask::from_x:
        return Method<T, Mask::from_x>(p).run();
      case Mask::from_out:
        return Method<T, Mask::from_out>(p).run();
    }
  });
}

}  // namespace
}  // namespace convnorm::batch_norm
