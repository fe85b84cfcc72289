// Average pooling's kernels for CUDA, run by the host: geometry against avg_pool.h by brute force, results
// against plain loops in double.
#include "ops/avg_pool/cuda/avg_pool_problem.h"

#include <algorithm>
#include <string>

#include "cuda/values.h"
#include "test.h"

using namespace convnorm;
using namespace convnorm::avg_pool;

namespace {

Strides strides_of(const Params& p, const Dims& size, bool channels_last) {
  Strides s;
  std::int64_t run = 1;
  const auto place = [&](std::int64_t& stride, std::int64_t count) {
    stride = run;
    run *= count;
  };
  if (channels_last) place(s.c, p.c);
  for (int d = kSpatial - 1; d >= 0; --d) place(s.s[d], size[d]);
  if (!channels_last) place(s.c, p.c);
  place(s.n, p.n);
  return s;
}

std::int64_t elements(const Params& p, const Dims& size) { return p.n * p.c * size[0] * size[1] * size[2]; }

Params random_problem(Random& random, DType dtype) {
  Params p;
  p.dtype = dtype;
  p.n = random(1, 2);
  p.c = random(0, 1) ? random(1, 9) : 8 * random(1, 3);
  p.adaptive = random(0, 2) == 0;
  p.include_pad = random(0, 1);
  p.divisor = random(0, 5) ? 0 : random(1, 7);
  for (int d = static_cast<int>(random(0, 2)); d < kSpatial; ++d) {
    Window& w = p.window;
    w.kernel[d] = random(1, 5);
    w.stride[d] = random(1, 4);
    w.pad[d] = w.pad_hi[d] = random(0, w.kernel[d] / 2);
    p.in[d] = std::max<std::int64_t>(1, w.kernel[d] - 2 * w.pad[d]) + random(0, d == 2 ? 20 : 5);
    const std::int64_t span = p.in[d] + 2 * w.pad[d] - w.kernel[d];
    p.out[d] = span / w.stride[d] + 1;
    if (span % w.stride[d] && p.out[d] * w.stride[d] < p.in[d] + w.pad[d] && random(0, 1)) ++p.out[d];
    if (p.adaptive) {
      p.out[d] = random(1, 9);
      w = Window{};
    }
  }
  const bool channels_last = random(0, 2) != 0;
  p.input = strides_of(p, p.in, channels_last);
  p.output = strides_of(p, p.out, channels_last);
  p.device.kind = DeviceKind::cuda;
  p.aligned = true;
  return p;
}

std::string describe(const Params& p) {
  std::string all = std::string(name(p.dtype)) + " n " + std::to_string(p.n) + " c " + std::to_string(p.c);
  for (int d = 0; d < kSpatial; ++d)
    all += " | " + std::to_string(p.in[d]) + " -> " + std::to_string(p.out[d]) + " k " +
           std::to_string(p.window.kernel[d]) + " s " + std::to_string(p.window.stride[d]) + " p " +
           std::to_string(p.window.pad[d]);
  return all + (p.adaptive ? " adaptive" : "") + (p.output.c == 1 ? " channels_last" : "");
}

void test_axes(const Params& p) {
  const Problem q = problem_of(p, 1);
  for (int d = 0; d < kSpatial; ++d) {
    const Axis& axis = q.axis[d];
    for (int o = 0; o < axis.out; ++o) {
      int begin, end;
      axis.span(o, begin, end);
      const Span want = span_inside(p, d, o);
      EXPECT(begin == want.begin && end == want.end, "%s", describe(p).c_str());
      EXPECT(p.divisor || axis.count(o) == count(p, d, o), "%s", describe(p).c_str());
    }
    for (int i = 0; i < axis.in; ++i) {
      int begin, end;
      axis.covering(i, begin, end);
      for (int o = 0; o < axis.out; ++o) {
        const Span window = span_inside(p, d, o);
        EXPECT((o >= begin && o < end) == (i >= window.begin && i < window.end),
               "axis %d, %d in window %d: %s", d, i, o, describe(p).c_str());
      }
    }
  }
}

template <class T>
void expect_near(const std::vector<T>& got, const std::vector<double>& want, DType t,
                 const std::string& what) {
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double bound =
        rounding(t) * std::abs(want[i]) + 24 * rounding(t == DType::f64 ? t : DType::f32) * 4;
    EXPECT(std::abs(wide(got[i]) - want[i]) <= bound, "%s: %g, must be %g", what.c_str(), wide(got[i]),
           want[i]);
  }
}

int vectors = 0;

template <class T>
void test_kernels(Random& random, const Params& p) {
  const auto draw = [&](std::int64_t n) {
    std::vector<T> v;
    for (std::int64_t i = 0; i < n; ++i)
      v.push_back(narrow<T>(static_cast<double>(random(-1000, 1000)) / 400));
    return v;
  };
  Params reference = p;
  reference.dtype = DType::f64;
  Buffer<T> input(draw(elements(p, p.in))), grad(draw(elements(p, p.out)));
  const std::vector<double> wide_input = wide(input.all()), wide_grad = wide(grad.all());
  std::vector<double> want(elements(p, p.out)), want_grad(elements(p, p.in));
  forward_direct(reference, wide_input.data(), want.data());
  backward_direct(reference, wide_grad.data(), want_grad.data());
  const auto expect = [&](Fn forward, Fn backward, const char* name) {
    Buffer<T> output(want.size()), grad_input(want_grad.size());
    forward(p, input.data(), output.data());
    backward(p, grad.data(), grad_input.data());
    expect_near(output.all(), want, p.dtype, std::string(name) + " " + describe(p));
    expect_near(grad_input.all(), want_grad, p.dtype, std::string(name) + " backward " + describe(p));
  };
  expect(forward_direct_cuda, backward_direct_cuda, "direct");
  if (refuse_channels_cuda(p)) return;
  expect(forward_channels_cuda, backward_channels_cuda, "channels");
  ++vectors;
}

template <class T>
void test_dtype(Random& random, DType dtype, int problems) {
  for (int i = 0; i < problems; ++i) {
    const Params p = random_problem(random, dtype);
    test_axes(p);
    test_kernels<T>(random, p);
  }
}

}  // namespace

int main() {
  Random random;
  test_dtype<float>(random, DType::f32, 80);
  test_dtype<double>(random, DType::f64, 20);
  test_dtype<bf16>(random, DType::bf16, 60);
  test_dtype<f16>(random, DType::f16, 20);
  EXPECT(vectors > 20, "only %d problems had vectors", vectors);
  return finish();
}
