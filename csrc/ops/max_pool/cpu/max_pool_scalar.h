// What the scalar kernels share: codes in memory, elements by coordinates, loops over planes.
#pragma once

#include "cpu/vec.h"

namespace convnorm::max_pool {
namespace {

inline std::int64_t element(const Strides& s, std::int64_t n, std::int64_t c, const Dims& i) {
  return n * s.n + c * s.c + i[0] * s.s[0] + i[1] * s.s[1] + i[2] * s.s[2];
}

inline std::int64_t read_code(Argmax kind, const void* argmax, std::int64_t i) {
  if (kind == Argmax::offset8) return static_cast<const std::uint8_t*>(argmax)[i];
  if (kind == Argmax::offset32) return static_cast<const std::int32_t*>(argmax)[i];
  return static_cast<const std::int64_t*>(argmax)[i];
}

inline void write_code(Argmax kind, void* argmax, std::int64_t i, std::int64_t code) {
  if (kind == Argmax::offset8) static_cast<std::uint8_t*>(argmax)[i] = static_cast<std::uint8_t>(code);
  if (kind == Argmax::offset32) static_cast<std::int32_t*>(argmax)[i] = static_cast<std::int32_t>(code);
  if (kind == Argmax::index64) static_cast<std::int64_t*>(argmax)[i] = code;
}

// The offset in the window, or the index in the plane: whichever is recorded.
inline std::int64_t code_of(const Params& p, const Dims& t, const Dims& i) {
  if (p.record == Argmax::index64) return (i[0] * p.in[1] + i[1]) * p.in[2] + i[2];
  return (t[0] * p.window.kernel[1] + t[1]) * p.window.kernel[2] + t[2];
}

template <class F>
void each_output(const Params& p, F&& f) {
  Dims o;
  for (o[0] = 0; o[0] < p.out[0]; ++o[0])
    for (o[1] = 0; o[1] < p.out[1]; ++o[1])
      for (o[2] = 0; o[2] < p.out[2]; ++o[2]) f(o);
}

// f(tap, coordinates) for the taps of window o inside the image, in window order.
template <class F>
void each_tap(const Params& p, const Dims& o, F&& f) {
  const Taps d = taps_inside(p, 0, o[0]), h = taps_inside(p, 1, o[1]), w = taps_inside(p, 2, o[2]);
  Dims t;
  for (t[0] = d.begin; t[0] < d.end; ++t[0])
    for (t[1] = h.begin; t[1] < h.end; ++t[1])
      for (t[2] = w.begin; t[2] < w.end; ++t[2])
        f(t, Dims{at(p, 0, o[0], t[0]), at(p, 1, o[1], t[1]), at(p, 2, o[2], t[2])});
}

template <class F>
void each_plane(const Params& p, F&& f) {
  parallel_for(p.n * p.c, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t q = begin; q < end; ++q) f(q / p.c, q % p.c);
  });
}

}  // namespace
}  // namespace convnorm::max_pool
