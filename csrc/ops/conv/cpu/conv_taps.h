// The taps of a dense problem, in row-major order of the window.
//
// Include after cpu/vec.h.
#pragma once

namespace convnorm::conv {
namespace {

inline std::int64_t tap_count(const Dense& d) { return d.axis[0].taps * d.axis[1].taps * d.axis[2].taps; }

// A tap's place in the window.
struct Tap {
  std::int64_t d, h, w;
};
inline Tap tap_at(const Dense& d, std::int64_t t) {
  const std::int64_t w = imax(1, d.axis[2].taps), h = imax(1, d.axis[1].taps);  // no taps: a block of zeros
  return {t / (w * h), t / w % h, t % w};
}
// Where the weights of tap t lie, from those of the first.
inline std::int64_t weight_of_tap(const Dense& d, std::int64_t t) {
  const Tap tap = tap_at(d, t);
  return tap.d * d.axis[0].weight_step + tap.h * d.axis[1].weight_step + tap.w * d.axis[2].weight_step;
}

}  // namespace
}  // namespace convnorm::conv
