// Random problems of max pooling, their layouts in memory, and their words.
#pragma once

#include <algorithm>
#include <string>

#include "ops/max_pool/max_pool.h"
#include "test.h"

namespace convnorm::max_pool::problems {

struct Layout {
  bool channels_last;
  std::int64_t gap;  // elements between rows, where torch would have a slice
};

// Strides of (n, c, d, h, w).
inline Strides strides_of(const Params& p, const Dims& size, Layout layout) {
  Strides s;
  std::int64_t run = 1;
  const auto place = [&](std::int64_t& stride, std::int64_t count) {
    stride = run;
    run *= count;
  };
  if (layout.channels_last) place(s.c, p.c);
  place(s.s[2], size[2]);
  run += layout.gap;
  place(s.s[1], size[1]);
  place(s.s[0], size[0]);
  if (!layout.channels_last) place(s.c, p.c);
  place(s.n, p.n);
  return s;
}

inline std::int64_t elements(const Params& p, const Strides& s, const Dims& size) {
  std::int64_t last = (p.n - 1) * s.n + (p.c - 1) * s.c;
  for (int d = 0; d < kSpatial; ++d) last += (size[d] - 1) * s.s[d];
  return last + 1;
}

// Windows that torch accepts, the common ones more often than others.
inline Params random_problem(Random& random, DType dtype) {
  Params p;
  p.dtype = dtype;
  p.n = random(1, 3);
  p.c = random(0, 3) ? random(1, 9) : random(10, 40);
  const bool common = random(0, 1), planes = random(0, 9) == 0, tiny = random(0, 3) == 0,
             same = random(0, 9) == 0;
  const std::int64_t kernel = random(2, 3), stride = common && kernel == 2 ? 2 : random(1, 3);
  for (int d = static_cast<int>(random(0, 2)); d < kSpatial; ++d) {
    Window& w = p.window;
    w.kernel[d] = common ? kernel : random(1, 4);
    w.stride[d] = common ? stride : random(1, 4);
    w.dil[d] = common ? 1 : random(1, 3);
    w.pad[d] = w.pad_hi[d] = random(0, 1) ? 0 : random(0, w.kernel[d] / 2);
    p.in[d] = std::max<std::int64_t>(1, reach(w, d) - 2 * w.pad[d]) + random(0, tiny ? 3 : d == 2 ? 40 : 6);
    if (same) {  // windows at stride 1, as many as pixels
      w.kernel[d] = d == 2 ? 2 * random(0, 1) + 1 : 1;
      w.stride[d] = w.dil[d] = 1;
      w.pad[d] = w.pad_hi[d] = w.kernel[d] / 2;
    }
    if (planes) {
      w.kernel[d] = w.stride[d] = p.in[d];
      w.dil[d] = 1;
      w.pad[d] = w.pad_hi[d] = 0;
    }
    const std::int64_t span = p.in[d] + 2 * w.pad[d] - reach(w, d);
    p.out[d] = span / w.stride[d] + 1;
    const bool ceil = span % w.stride[d] && p.out[d] * w.stride[d] < p.in[d] + w.pad[d];
    if (ceil && random(0, 1)) ++p.out[d];
  }
  return p;
}

inline std::string describe(const Params& p) {
  std::string all = "n " + std::to_string(p.n) + " c " + std::to_string(p.c);
  const auto add = [&](const char* what, const Dims& d) {
    all += std::string(" ") + what;
    for (std::int64_t x : d) all += " " + std::to_string(x);
  };
  add("in", p.in);
  add("out", p.out);
  add("kernel", p.window.kernel);
  add("stride", p.window.stride);
  add("pad", p.window.pad);
  add("dil", p.window.dil);
  return all + " record " + std::to_string(static_cast<int>(p.record));
}

}  // namespace convnorm::max_pool::problems
