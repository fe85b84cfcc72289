#include <cmath>

#include "cpu/target_generic.h"
#include "cpu/vec.h"
#include "ops/layer_norm/layer_norm.h"

namespace convnorm::layer_norm {
namespace {

double get(DType dtype, const void* values, std::int64_t i, double missing = 0) {
  if (!values) return missing;
  return dispatch(dtype,
                  [&](auto t) -> double { return load1(static_cast<const decltype(t)*>(values) + i); });
}

void set(DType dtype, void* values, std::int64_t i, double value) {
  dispatch(dtype, [&](auto t) {
    using T = decltype(t);
    store1(static_cast<T*>(values) + i, static_cast<compute_t<T>>(value));
  });
}

}  // namespace

void forward_reference(const Forward& p) {
  const double n = static_cast<double>(p.size);
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const auto x = [&](std::int64_t i) { return get(p.dtype, p.x, row * p.size + i); };
    double sum = 0, squares = 0;
    for (std::int64_t i = 0; i < p.size; ++i) sum += x(i);
    p.mean[row] = sum / n;
    for (std::int64_t i = 0; i < p.size; ++i) squares += std::pow(x(i) - p.mean[row], 2);
    p.var[row] = squares / n;
    const double r = 1 / std::sqrt(p.var[row] + p.eps);
    for (std::int64_t i = 0; i < p.size; ++i) {
      const double weight = get(p.weight_dtype, p.weight, i, 1), bias = get(p.bias_dtype, p.bias, i);
      set(p.dtype, p.out, row * p.size + i, (x(i) - p.mean[row]) * r * weight + bias);
    }
  }
}

void backward_reference(const Backward& p) {
  const double n = static_cast<double>(p.size);
  for (std::int64_t i = 0; i < p.size && p.grad_weight; ++i) p.grad_weight[i] = p.grad_bias[i] = 0;
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const double r = 1 / std::sqrt(p.var[row] + p.eps);
    const auto g = [&](std::int64_t i) { return get(p.dtype, p.grad_output, row * p.size + i); };
    const auto wg = [&](std::int64_t i) { return g(i) * get(p.weight_dtype, p.weight, i, 1); };
    const auto xhat = [&](std::int64_t i) { return (get(p.dtype, p.x, row * p.size + i) - p.mean[row]) * r; };
    double sum = 0, along = 0;
    for (std::int64_t i = 0; i < p.size; ++i) sum += wg(i), along += wg(i) * xhat(i);
    for (std::int64_t i = 0; i < p.size; ++i) {
      if (p.grad_weight) p.grad_weight[i] += g(i) * xhat(i), p.grad_bias[i] += g(i);
      if (p.grad_input)
        set(p.dtype, p.grad_input, row * p.size + i, r * (wg(i) - sum / n - xhat(i) * along / n));
    }
  }
}

}  // namespace convnorm::layer_norm
