// Every norm sees its tensors as [outer, channel, inner]: for batch norm (n, c, d*h*w). Torch-free.
//
// Two memory orders are fast: `planes`, where the inner extent is one run of unit stride (contiguous NCHW),
// and `rows`, where the channels are (channels_last, and fully connected N x C). Anything else is read
// through strides.
#pragma once

#include <cstdint>

#include "common/window.h"

namespace convnorm {

struct NormView {
  void* data = nullptr;
  std::int64_t outer = 0, channels = 0, inner = 1;
  Dims size{1, 1, 1};  // of the inner extent: d, h, w
  std::int64_t outer_stride = 0, channel_stride = 0;
  Dims stride{0, 0, 0};

  std::int64_t values() const { return outer * inner; }  // per channel
};

// The one stride with which the inner extent can be walked, or -1 when its dimensions do not collapse.
inline std::int64_t inner_stride(const NormView& v) {
  std::int64_t run = 0, next = 0;
  for (int d = kSpatial - 1; d >= 0; --d) {
    if (v.size[d] == 1) continue;
    if (run == 0 && next == 0) {
      run = v.stride[d];
    } else if (v.stride[d] != next) {
      return -1;
    }
    next = v.stride[d] * v.size[d];
    if (run == 0) return v.values() == 0 ? 0 : -1;  // expanded: read through strides
  }
  return run;
}

inline bool is_planes(const NormView& v) { return v.inner == 1 || inner_stride(v) == 1; }

// The distance between rows of channels when (outer, inner) collapse to one dimension, or -1.
inline std::int64_t row_stride(const NormView& v) {
  if (v.channels != 1 && v.channel_stride != 1) return -1;
  if (v.inner == 1) return v.outer_stride;
  const std::int64_t run = inner_stride(v);
  return run < 0 || (v.outer > 1 && v.outer_stride != run * v.inner) ? -1 : run;
}

// Offset of element i of the inner extent, for the slow roads.
inline std::int64_t inner_offset(const NormView& v, std::int64_t i) {
  const std::int64_t w = i % v.size[2], h = i / v.size[2] % v.size[1], d = i / v.size[2] / v.size[1];
  return d * v.stride[0] + h * v.stride[1] + w * v.stride[2];
}

}  // namespace convnorm
