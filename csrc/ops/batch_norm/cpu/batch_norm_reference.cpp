#include <cmath>

#include "cpu/target_generic.h"
#include "cpu/vec.h"
#include "ops/batch_norm/batch_norm.h"

namespace convnorm::batch_norm {
namespace {

template <class T>
double get(const NormView& v, std::int64_t n, std::int64_t c, std::int64_t i) {
  return load1(static_cast<const T*>(v.data) + n * v.outer_stride + c * v.channel_stride +
               inner_offset(v, i));
}

template <class T>
void set(const NormView& v, std::int64_t n, std::int64_t c, std::int64_t i, double value) {
  store1(static_cast<T*>(v.data) + n * v.outer_stride + c * v.channel_stride + inner_offset(v, i),
         static_cast<compute_t<T>>(value));
}

template <class F>
void each_value(const NormView& v, F f) {
  for (std::int64_t n = 0; n < v.outer; ++n)
    for (std::int64_t i = 0; i < v.inner; ++i) f(n, i);
}

template <class T>
void forward_channel(const Forward& p, std::int64_t c) {
  const double count = static_cast<double>(p.x.values());
  if (p.train) {
    double sum = 0, squares = 0;
    each_value(p.x, [&](auto n, auto i) { sum += get<T>(p.x, n, c, i); });
    p.mean[c] = sum / count;
    each_value(p.x, [&](auto n, auto i) { squares += std::pow(get<T>(p.x, n, c, i) - p.mean[c], 2); });
    p.var[c] = squares / count;
  }
  if (!p.out.data) return;
  const double r = 1 / std::sqrt(p.var[c] + p.eps);
  each_value(p.x, [&](auto n, auto i) {
    const double xhat = (get<T>(p.x, n, c, i) - p.mean[c]) * r;
    double y = xhat * (p.weight ? p.weight[c] : 1) + (p.bias ? p.bias[c] : 0);
    if (p.residual.data) y += get<T>(p.residual, n, c, i);
    set<T>(p.out, n, c, i, p.relu && y < 0 ? 0 : y);
  });
}

template <class T>
void backward_channel(const Backward& p, std::int64_t c) {
  const double count = static_cast<double>(p.x.values());
  const double r = 1 / std::sqrt(p.var[c] + p.eps);
  const double weight = p.weight ? p.weight[c] : 1, bias = p.bias ? p.bias[c] : 0;
  const auto xhat = [&](auto n, auto i) { return (get<T>(p.x, n, c, i) - p.mean[c]) * r; };
  const auto g = [&](auto n, auto i) {
    const double out = !p.relu ? 1 : p.out.data ? get<T>(p.out, n, c, i) : xhat(n, i) * weight + bias;
    return out <= 0 ? 0 : get<T>(p.grad_output, n, c, i);
  };
  double &grad_bias = p.grad_bias[c], &grad_weight = p.grad_weight[c];
  if (!p.sums_given) {
    grad_bias = grad_weight = 0;
    each_value(p.x, [&](auto n, auto i) { grad_bias += g(n, i), grad_weight += g(n, i) * xhat(n, i); });
  }
  each_value(p.x, [&](auto n, auto i) {
    if (p.grad_residual.data) set<T>(p.grad_residual, n, c, i, g(n, i));
    const double through_statistics = p.train ? (grad_bias + xhat(n, i) * grad_weight) / count : 0;
    if (p.want_input) set<T>(p.grad_input, n, c, i, weight * r * (g(n, i) - through_statistics));
  });
}

}  // namespace

void forward_reference(const Forward& p) {
  dispatch(p.dtype, [&](auto t) {
    parallel_for(p.x.channels, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = begin; c < end; ++c) forward_channel<decltype(t)>(p, c);
    });
  });
}

void backward_reference(const Backward& p) {
  dispatch(p.dtype, [&](auto t) {
    parallel_for(p.x.channels, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = begin; c < end; ++c) backward_channel<decltype(t)>(p, c);
    });
  });
}

}  // namespace convnorm::batch_norm
