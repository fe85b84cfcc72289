#include <cmath>

#include "cpu/target_generic.h"
#include "cpu/vec.h"
#include "ops/group_norm/group_norm.h"

namespace convnorm::group_norm {
namespace {

// f(offset of the element, channel) for every element of group t of all images.
template <class F>
void each_value(const Shape& p, std::int64_t t, F f) {
  const std::int64_t n = t / p.groups, first = t % p.groups * p.depth();
  for (std::int64_t c = first; c < first + p.depth(); ++c)
    for (std::int64_t i = 0; i < p.inner; ++i)
      f(p.rows ? (n * p.inner + i) * p.channels + c : (n * p.channels + c) * p.inner + i, c);
}

template <class T>
void forward(const Forward& p) {
  const T* x = static_cast<const T*>(p.x);
  const double count = static_cast<double>(p.group_values());
  for (std::int64_t t = 0; t < p.batch * p.groups; ++t) {
    double sum = 0, squares = 0;
    each_value(p, t, [&](auto i, auto) { sum += load1(x + i); });
    p.mean[t] = sum / count;
    each_value(p, t, [&](auto i, auto) { squares += std::pow(load1(x + i) - p.mean[t], 2); });
    p.var[t] = squares / count;
    const double r = 1 / std::sqrt(p.var[t] + p.eps);
    each_value(p, t, [&](auto i, auto c) {
      const double xhat = (load1(x + i) - p.mean[t]) * r;
      const double y = xhat * (p.weight ? p.weight[c] : 1) + (p.bias ? p.bias[c] : 0);
      store1(static_cast<T*>(p.out) + i, static_cast<compute_t<T>>(y));
    });
  }
}

template <class T>
void backward(const Backward& p) {
  const T *x = static_cast<const T*>(p.x), *g = static_cast<const T*>(p.grad_output);
  const double count = static_cast<double>(p.group_values());
  for (std::int64_t c = 0; c < p.channels && p.grad_weight; ++c) p.grad_weight[c] = p.grad_bias[c] = 0;
  for (std::int64_t t = 0; t < p.batch * p.groups; ++t) {
    const double r = 1 / std::sqrt(p.var[t] + p.eps);
    const auto xhat = [&](auto i) { return (load1(x + i) - p.mean[t]) * r; };
    const auto weight = [&](auto c) { return p.weight ? p.weight[c] : 1; };
    double level = 0, along = 0;
    each_value(p, t, [&](auto i, auto c) {
      level += weight(c) * load1(g + i) / count;
      along += weight(c) * load1(g + i) * xhat(i) / count;
      if (p.grad_weight) p.grad_weight[c] += load1(g + i) * xhat(i), p.grad_bias[c] += load1(g + i);
    });
    if (!p.grad_input) continue;
    each_value(p, t, [&](auto i, auto c) {
      const double value = r * (weight(c) * load1(g + i) - level - xhat(i) * along);
      store1(static_cast<T*>(p.grad_input) + i, static_cast<compute_t<T>>(value));
    });
  }
}

}  // namespace

void forward_reference(const Forward& p) {
  dispatch(p.dtype, [&](auto t) { forward<decltype(t)>(p); });
}

void backward_reference(const Backward& p) {
  dispatch(p.dtype, [&](auto t) { backward<decltype(t)>(p); });
}

}  // namespace convnorm::group_norm
