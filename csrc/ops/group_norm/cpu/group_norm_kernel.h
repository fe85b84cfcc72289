// What both methods of group norm share: coefficients, and the bodies' table. Included by one small file per
// instruction set.
#pragma once

#include "cpu/sweep.h"

namespace convnorm::group_norm {
namespace {

// y = (x - center) scale + shift; center is the mean rounded to C.
template <class C>
struct Coefficients {
  C center, scale, shift;
};

// Of channel c in a group of this mean and r = 1 / sqrt(var + eps).
template <class C>
inline Coefficients<C> coefficients(const Forward& p, std::int64_t c, double mean, double r) {
  const C center = static_cast<C>(mean);
  const double scale = (p.weight ? p.weight[c] : 1) * r;
  return {center, static_cast<C>(scale), static_cast<C>((p.bias ? p.bias[c] : 0) + (center - mean) * scale)};
}

// xhat = (x - center) inv + rest;  grad_x = g slope - level - xhat along.
template <class C>
struct Slopes {
  C center, inv, rest, slope, along, level;
};

// The sums of g and of g xhat over a plane.
struct PlaneSums {
  double g = 0, gx = 0;
};

// A group's share of the backward: the sums over its planes, which start at sums[0].
struct GroupSlopes {
  double mean, r, along, level;

  // t counts the groups of all images.
  GroupSlopes(const Backward& p, std::int64_t t, const PlaneSums* sums) {
    const std::int64_t depth = p.depth(), first = t % p.groups * depth;
    mean = p.mean[t];
    r = 1 / __builtin_sqrt(p.var[t] + p.eps);
    if (p.group_values() == 1) r = 0;  // xhat of one value is zero, and so is its gradient
    along = level = 0;
    for (std::int64_t k = 0; k < depth; ++k) {
      const double weight = p.weight ? p.weight[first + k] : 1;
      level += weight * sums[k].g;
      along += weight * sums[k].gx;
    }
    const double share = r / static_cast<double>(p.group_values());
    along *= share;
    level *= share;
  }

  template <class C>
  Slopes<C> channel(const Backward& p, std::int64_t c) const {
    const C center = static_cast<C>(mean);
    return {center,
            static_cast<C>(r),
            static_cast<C>((center - mean) * r),
            static_cast<C>((p.weight ? p.weight[c] : 1) * r),
            static_cast<C>(along),
            static_cast<C>(level)};
  }
};

// xhat sums of one plane from those of g and g (x - center).
struct PlaneSummer {
  double low, r;  // mean - center

  template <class C>
  PlaneSummer(const Backward& p, std::int64_t t, C center)
      : low(p.mean[t] - center), r(1 / __builtin_sqrt(p.var[t] + p.eps)) {}
  PlaneSums operator()(double g, double dot) const { return {g, (dot - low * g) * r}; }
};

// grad_weight and grad_bias from the sums of all planes, [batch, channels].
inline void add_images(const Backward& p, const PlaneSums* sums) {
  if (!p.grad_weight) return;
  for (std::int64_t c = 0; c < p.channels; ++c) p.grad_weight[c] = p.grad_bias[c] = 0;
  for (std::int64_t n = 0; n < p.batch; ++n) {
    for (std::int64_t c = 0; c < p.channels; ++c) {
      p.grad_weight[c] += sums[n * p.channels + c].gx;
      p.grad_bias[c] += sums[n * p.channels + c].g;
    }
  }
}

template <class T>
inline bool far_larger_than_caches(const Shape& p) {
  return p.batch * p.channels * p.inner * static_cast<std::int64_t>(sizeof(T)) >= kStreamBytes;
}

inline double total(const Wide<float>& sums) {
  vec<double> all = sums.part[0];
  for (int i = 1; i < Wide<float>::kParts; ++i) all += sums.part[i];
  return fold<kLanes<double>, double>(all);
}
inline double g_total(const PairSums<float>& sums) { return total(sums.g); }
inline double dot_total(const PairSums<float>& sums) { return total(sums.dot); }
inline double g_total(const PairSums<double>& sums) {
  double all = 0;
  for (int i = 0; i < kLanes<double>; ++i) all += sums.g_lane(i);
  return all;
}
inline double dot_total(const PairSums<double>& sums) {
  double all = 0;
  for (int i = 0; i < kLanes<double>; ++i) all += sums.dot_lane(i);
  return all;
}

}  // namespace
}  // namespace convnorm::group_norm

#include "ops/group_norm/cpu/group_norm_planes.h"
#include "ops/group_norm/cpu/group_norm_rows.h"
#include "ops/group_norm/cpu/group_norm_rows_backward.h"

namespace convnorm::group_norm {
namespace {

template <template <class> class Method, class Params>
void run(const Params& p) {
  dispatch(p.dtype, [&](auto t) { Method<decltype(t)>(p).run(); });
}

}  // namespace
}  // namespace convnorm::group_norm
