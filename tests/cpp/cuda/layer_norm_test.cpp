// Layer norm's kernels for CUDA, run by the host, against the textbook loops in double.
#include "ops/layer_norm/cuda/layer_norm_plan.h"

#include <algorithm>
#include <string>

#include "cuda/values.h"
#include "test.h"

using namespace convnorm;
using namespace convnorm::layer_norm;

namespace {

template <class T>
std::vector<T> draw(Random& random, std::int64_t n, double mean, double std) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < n; ++i)  // of unit variance: a sum of three
    values.push_back(
        narrow<T>(mean + std * (random(-1000, 1000) + random(-1000, 1000) + random(-1000, 1000)) / 1000.));
  return values;
}

// |got - want| within a rounding of dtype and `units` of float, of the value and of `scale`.
template <class T>
void expect_near(const std::vector<T>& got, const std::vector<double>& want, DType t, double units,
                 double scale, const std::string& what) {
  const double fine = rounding(t == DType::f64 ? t : DType::f32);
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double bound = rounding(t) * std::abs(want[i]) + units * fine * (scale + std::abs(want[i]));
    const double error = std::abs(wide(got[i]) - want[i]);
    worst = error == error ? std::max(worst, error / bound) : 1e300;
  }
  EXPECT(worst <= 1, "%s: error is %g times its bound", what.c_str(), worst);
}

template <class T>
void test_problem(Random& random, DType t, std::int64_t rows, std::int64_t size, double mean, bool affine) {
  const std::string what = std::string(name(t)) + " " + std::to_string(rows) + " x " + std::to_string(size);
  Buffer<T> x(draw<T>(random, rows * size, mean, 1)), g(draw<T>(random, rows * size, 0, 1));
  std::vector<float> weight = draw<float>(random, size, 1, 0.3), bias = draw<float>(random, size, 0, 0.3);
  std::vector<double> wide_x = wide(x.all()), wide_g = wide(g.all());

  std::vector<double> want(rows * size), want_mean(rows), want_var(rows), want_grad(rows * size),
      want_weight(size), want_bias(size);
  Forward f;
  f.dtype = DType::f64;
  f.rows = rows, f.size = size, f.eps = 1e-5;
  f.x = wide_x.data(), f.out = want.data();
  if (affine) f.weight = weight.data(), f.bias = bias.data();
  f.mean = want_mean.data(), f.var = want_var.data();
  forward_reference(f);
  Backward b;
  b.dtype = DType::f64;
  b.rows = rows, b.size = size, b.eps = 1e-5;
  b.x = wide_x.data(), b.grad_output = wide_g.data();
  b.weight = f.weight;
  b.mean = f.mean, b.var = f.var;
  b.grad_input = want_grad.data(), b.grad_weight = want_weight.data(), b.grad_bias = want_bias.data();
  backward_reference(b);

  f.dtype = b.dtype = t;
  f.device.kind = b.device.kind = DeviceKind::cuda;
  f.x = x.data(), b.x = x.data(), b.grad_output = g.data();
  const auto forward = [&] {
    Buffer<T> out(rows * size);
    Buffer<double> stats(2 * rows);
    f.out = out.data(), f.mean = stats.data(), f.var = stats.data() + rows;
    forward_cuda(f);
    return std::pair(out, stats);
  };
  auto [out, stats] = forward();
  const auto again = forward();
  expect_near(out.all(), want, t, 24, 8, what);
  for (std::int64_t r = 0; r < rows; ++r) {
    EXPECT(std::abs(stats.data()[r] - want_mean[r]) <= 1e-6 * std::sqrt(want_var[r]) + 1e-300, "%s: mean",
           what.c_str());
    EXPECT(std::abs(stats.data()[rows + r] - want_var[r]) <= 1e-6 * want_var[r], "%s: var", what.c_str());
  }
  EXPECT(same_bits(out.all(), again.first.all()), "%s: another order of threads gave other bits",
         what.c_str());

  Buffer<T> grad_input(rows * size);
  Buffer<double> grad_weight(size), grad_bias(size);
  Buffer<char> work(static_cast<std::size_t>(backward_workspace(b)));
  b.mean = want_mean.data(), b.var = want_var.data();
  b.grad_input = grad_input.data();
  b.grad_weight_at = {grad_weight.data(), DType::f64}, b.grad_bias_at = {grad_bias.data(), DType::f64};
  b.workspace = work.data();
  backward_cuda(b);
  const double terms = std::sqrt(static_cast<double>(rows)) + 4;
  const DType sums = t == DType::f64 ? t : DType::f32;
  expect_near(grad_input.all(), want_grad, t, 24, 8, what + " grad_input");
  expect_near(grad_weight.all(), want_weight, sums, 8, terms, what + " grad_weight");
  expect_near(grad_bias.all(), want_bias, sums, 8, terms, what + " grad_bias");
}

template <class T>
void test_dtype(Random& random, DType t, int step) {
  int i = 0;
  for (const std::int64_t size : {1, 3, 8, 24, 96, 257, 1024, 2080, 5000})
    for (const std::int64_t rows : {1, 7, 40})
      if (i++ % step == 0 && rows * size < 60000) test_problem<T>(random, t, rows, size, 0.5, i % 3 != 0);
}

}  // namespace

int main() {
  Random random;
  test_dtype<float>(random, DType::f32, 1);
  test_dtype<bf16>(random, DType::bf16, 1);
  test_dtype<f16>(random, DType::f16, 4);
  test_dtype<double>(random, DType::f64, 4);
  for (const double mean : {1e3, 1e4, 1e6}) test_problem<float>(random, DType::f32, 5, 768, mean, false);
  test_problem<float>(random, DType::f32, 3000, 16, 0.5, true);  // several pieces of rows
  return finish();
}
