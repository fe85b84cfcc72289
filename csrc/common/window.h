// The geometry of a sliding window, one dimension at a time: kernel, stride, padding, dilation -> output
// size. 1d and 2d problems are lifted to 3d with sizes of one in front, so that kernels know one shape only.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "common/check.h"

namespace convnorm {

inline constexpr int kSpatial = 3;  // d, h, w
using Dims = std::array<std::int64_t, kSpatial>;

// Of an (n, c, d, h, w) tensor, in elements.
struct Strides {
  std::int64_t n = 0, c = 0;
  Dims s{0, 0, 0};
};

struct Window {
  Dims kernel{1, 1, 1};
  Dims stride{1, 1, 1};
  Dims pad{0, 0, 0};     // before the first element
  Dims pad_hi{0, 0, 0};  // after the last one; differs from pad for padding='same' with an even kernel
  Dims dil{1, 1, 1};
};

// The extent that a window covers: dilation * (kernel - 1) + 1.
inline std::int64_t reach(const Window& w, int d) { return w.dil[d] * (w.kernel[d] - 1) + 1; }

// Coordinates [begin, end) of one dimension.
struct Span {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
  bool operator==(const Span& other) const { return begin == other.begin && end == other.end; }
};

// Window o when `in` elements are shared among `out` windows (adaptive pooling): from floor(o*in/out) to
// ceil((o+1)*in/out), so windows overlap or repeat where `out` does not divide `in`.
inline Span adaptive_span(std::int64_t in, std::int64_t out, std::int64_t o) {
  return {o * in / out, ((o + 1) * in + out - 1) / out};
}

// `values` of 1, 2 or 3 spatial dimensions, in front of which `fill` is put.
inline Dims lift(const std::int64_t* values, int n, std::int64_t fill) {
  Dims out{fill, fill, fill};
  for (int i = 0; i < n; ++i) out[kSpatial - n + i] = values[i];
  return out;
}

// A tensor (n, c, spatial...) with the spatial dimensions lifted to d, h, w; strides in elements.
struct View5 {
  void* data = nullptr;
  std::int64_t n = 1, c = 1;
  Dims size{1, 1, 1};
  std::int64_t stride_n = 0, stride_c = 0;
  Dims stride{0, 0, 0};
};

inline const char* dim_name(int d) { return d == 0 ? "depth" : d == 1 ? "height" : "width"; }

}  // namespace convnorm
