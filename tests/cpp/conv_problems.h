// Random problems of convolution, and their layouts in memory.
#pragma once

#include <algorithm>
#include <array>

#include "ops/conv/conv.h"
#include "test.h"

namespace convnorm::conv::problems {

// Strides of (n, c, d, h, w) or (k, c, d, h, w), dense; channels last if asked.
inline std::array<std::int64_t, 5> strides_of(const std::array<std::int64_t, 5>& size, bool channels_last) {
  std::array<std::int64_t, 5> stride{};
  std::int64_t run = 1;
  for (int d : channels_last ? std::array{1, 4, 3, 2, 0} : std::array{4, 3, 2, 1, 0}) {
    stride[d] = run;
    run *= size[d];
  }
  return stride;
}

inline View5 view_of(const std::array<std::int64_t, 5>& size, bool channels_last) {
  const auto s = strides_of(size, channels_last);
  View5 v;
  v.n = size[0];
  v.c = size[1];
  v.size = {size[2], size[3], size[4]};
  v.stride_n = s[0];
  v.stride_c = s[1];
  v.stride = {s[2], s[3], s[4]};
  return v;
}

inline std::int64_t count(const View5& v) { return v.n * v.c * v.size[0] * v.size[1] * v.size[2]; }

// A problem of any geometry that has an output; sizes stay small. Depthwise has one filter per channel, and
// larger kernels.
inline Params random_problem(Random& random, Pass pass, DType dtype, bool depthwise = false,
                             std::int64_t most_channels = 9) {
  Params p{};
  p.pass = pass;
  p.dtype = dtype;
  p.groups = depthwise ? random(1, 40) : random(1, 3);
  const std::int64_t c = depthwise ? p.groups : p.groups * random(1, most_channels);
  const std::int64_t k = depthwise ? p.groups : p.groups * random(1, 2 * most_channels), n = random(1, 3);
  std::array<std::int64_t, 5> in{n, c, 1, 1, 1}, out{n, k, 1, 1, 1}, filter{k, c / p.groups, 1, 1, 1};
  for (int d = static_cast<int>(random(0, 2)); d < kSpatial; ++d) {
    Window& w = p.window;
    w.kernel[d] = random(1, depthwise ? 7 : 4);
    w.stride[d] = random(1, 4);
    w.dil[d] = random(1, 3);
    w.pad[d] = random(0, 4);
    w.pad_hi[d] = random(0, 4);
    const std::int64_t least = std::max<std::int64_t>(1, reach(w, d) - w.pad[d] - w.pad_hi[d]);
    in[2 + d] = least + random(0, d == 2 ? 18 : 5);
    out[2 + d] = (in[2 + d] + w.pad[d] + w.pad_hi[d] - reach(w, d)) / w.stride[d] + 1;
    filter[2 + d] = w.kernel[d];
  }
  p.input = view_of(in, random(0, 1));
  p.output = view_of(out, random(0, 1));
  const auto s = strides_of(filter, random(0, 1));
  p.weight.stride_k = s[0];
  p.weight.stride_c = s[1];
  p.weight.stride = {s[2], s[3], s[4]};
  return p;
}

inline std::int64_t weight_count(const Params& p) {
  const Dims& k = p.window.kernel;
  return p.output.c * (p.input.c / p.groups) * k[0] * k[1] * k[2];
}

}  // namespace convnorm::conv::problems
