// Group and instance norm's kernels for CUDA, run by the host, against the textbook loops in double.
#include "ops/group_norm/cuda/group_norm_plan.h"

#include <algorithm>
#include <string>

#include "cuda/values.h"
#include "test.h"

using namespace convnorm;
using namespace convnorm::group_norm;

namespace {

template <class T>
std::vector<T> draw(Random& random, std::int64_t n, double mean, double std) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < n; ++i)  // of unit variance: a sum of three
    values.push_back(
        narrow<T>(mean + std * (random(-1000, 1000) + random(-1000, 1000) + random(-1000, 1000)) / 1000.));
  return values;
}

// |got - want| within a rounding of dtype and 24 of float, of the value and of `scale`.
template <class T>
void expect_near(const std::vector<T>& got, const std::vector<double>& want, DType t, double scale,
                 const std::string& what) {
  const double fine = rounding(t == DType::f64 ? t : DType::f32);
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double bound = rounding(t) * std::abs(want[i]) + 24 * fine * (scale + std::abs(want[i]));
    const double error = std::abs(wide(got[i]) - want[i]);
    worst = error == error ? std::max(worst, error / bound) : 1e300;
  }
  EXPECT(worst <= 1, "%s: error is %g times its bound", what.c_str(), worst);
}

template <class T>
void test_problem(Random& random, Shape s, double mean, bool affine) {
  const std::string what = std::string(name(s.dtype)) + " n " + std::to_string(s.batch) + " c " +
                           std::to_string(s.channels) + " groups " + std::to_string(s.groups) + " inner " +
                           std::to_string(s.inner) + (s.rows ? " rows" : " planes");
  const std::int64_t size = s.batch * s.channels * s.inner, groups = s.batch * s.groups;
  Buffer<T> x(draw<T>(random, size, mean, 1)), g(draw<T>(random, size, 0, 1));
  std::vector<double> weight = draw<double>(random, s.channels, 1, 0.3),
                      bias = draw<double>(random, s.channels, 0, 0.3);
  weight[0] = 0;  // nothing may be divided by it
  std::vector<double> wide_x = wide(x.all()), wide_g = wide(g.all());
  std::vector<double> want(size), stats(2 * groups), want_grad(size), want_weight(s.channels),
      want_bias(s.channels);

  Forward f;
  static_cast<Shape&>(f) = s;
  f.dtype = DType::f64;
  f.eps = 1e-5;
  f.x = wide_x.data(), f.out = want.data();
  f.mean = stats.data(), f.var = stats.data() + groups;
  if (affine) f.weight = weight.data(), f.bias = bias.data();
  forward_reference(f);
  Backward b;
  static_cast<Shape&>(b) = s;
  b.dtype = DType::f64;
  b.eps = 1e-5;
  b.x = wide_x.data(), b.grad_output = wide_g.data(), b.weight = f.weight;
  b.mean = f.mean, b.var = f.var;
  b.grad_input = want_grad.data(), b.grad_weight = want_weight.data(), b.grad_bias = want_bias.data();
  backward_reference(b);

  f.dtype = b.dtype = s.dtype;
  Buffer<char> work(static_cast<std::size_t>(workspace(s)));
  f.workspace = b.workspace = work.data();
  f.x = x.data(), b.x = x.data(), b.grad_output = g.data();
  if (affine) f.weight_at = b.weight_at = {weight.data(), DType::f64}, f.bias_at = {bias.data(), DType::f64};
  const auto forward = [&] {
    Buffer<T> out(size);
    Buffer<double> found(2 * groups);
    f.out = out.data(), f.mean = found.data(), f.var = found.data() + groups;
    forward_cuda(f);
    return std::pair(out, found);
  };
  auto [out, found] = forward();
  EXPECT(same_bits(out.all(), forward().first.all()), "%s: another order of threads gave other bits",
         what.c_str());
  expect_near(out.all(), want, s.dtype, 8, what);
  for (std::int64_t i = 0; i < groups; ++i) {
    EXPECT(std::abs(found.data()[i] - stats[i]) <= 1e-6 * std::sqrt(stats[groups + i]), "%s: mean",
           what.c_str());
    EXPECT(std::abs(found.data()[groups + i] - stats[groups + i]) <= 1e-6 * stats[groups + i], "%s: var",
           what.c_str());
  }

  Buffer<T> grad_input(size);
  Buffer<double> grad_weight(s.channels), grad_bias(s.channels);
  b.grad_input = grad_input.data();
  b.grad_weight_at = {grad_weight.data(), DType::f64}, b.grad_bias_at = {grad_bias.data(), DType::f64};
  backward_cuda(b);
  const double terms = std::sqrt(static_cast<double>(s.batch * s.inner)) + 4;
  const DType sums = s.dtype == DType::f64 ? s.dtype : DType::f32;
  expect_near(grad_input.all(), want_grad, s.dtype, 8, what + " grad_input");
  expect_near(grad_weight.all(), want_weight, sums, terms, what + " grad_weight");
  expect_near(grad_bias.all(), want_bias, sums, terms, what + " grad_bias");
}

template <class T>
void test_dtype(Random& random, DType t, int step) {
  int i = 0;
  for (const bool rows : {true, false})
    for (const auto& [channels, groups] : {std::pair{6, 2}, {8, 8}, {9, 3}, {32, 4}, {24, 1}, {40, 40}})
      for (const std::int64_t inner : {7, 16, 49, 600})
        if (i++ % step == 0) {
          Shape s;
          s.dtype = t;
          s.rows = rows;
          s.batch = 1 + i % 3;
          s.channels = channels, s.groups = groups, s.inner = inner;
          test_problem<T>(random, s, 0.5, i % 4 != 0);
        }
}

}  // namespace

int main() {
  Random random;
  test_dtype<float>(random, DType::f32, 1);
  test_dtype<bf16>(random, DType::bf16, 3);
  test_dtype<f16>(random, DType::f16, 7);
  test_dtype<double>(random, DType::f64, 5);
  for (const bool rows : {true, false})
    for (const double mean : {1e3, 1e4, 1e6}) {
      Shape s;
      s.rows = rows;
      s.batch = 2, s.channels = 16, s.groups = 4, s.inner = 100;
      test_problem<float>(random, s, mean, false);
    }
  return finish();
}
