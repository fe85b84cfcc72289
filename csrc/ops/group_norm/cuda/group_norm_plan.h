// Group norm on CUDA: batch norm's passes over batch * channels channels, between which groups are merged.
// Plain C++.
#pragma once

#include "cuda/plan.h"
#include "ops/group_norm/group_norm.h"

namespace convnorm::group_norm {

// A pair of a piece is at [piece][image][channel] in both layouts.
inline cuda::Plan plan_of(const Shape& p) {
  return p.rows ? cuda::rows_plan(p.dtype, p.inner, p.channels, p.batch)
                : cuda::planes_plan(p.dtype, 1, p.batch * p.channels, p.inner);
}

// After the pieces: this many doubles per image and channel.
inline constexpr int kArrays = 7;

inline std::int64_t workspace(const Shape& p) {
  return plan_of(p).bytes() + kArrays * p.batch * p.channels * 8;
}

}  // namespace convnorm::group_norm
