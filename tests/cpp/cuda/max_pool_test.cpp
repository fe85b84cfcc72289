// Max pooling's kernels for CUDA, run by the host: their geometry against max_pool.h by brute force, and
// their results against plain loops, bit for bit.
#include "ops/max_pool/cuda/max_pool_problem.h"

#include <string>

#include "cuda/values.h"
#include "max_pool_problems.h"
#include "ops/max_pool/cuda/max_pool_rows.h"

using namespace convnorm;
using namespace convnorm::max_pool;
using namespace convnorm::max_pool::problems;

namespace {

void test_divider(Random& random) {
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
  for (int i = 0; i < 20000; ++i) {
    const std::int64_t d = i < 200 ? i + 1 : random(1, i % 2 ? most : 5000);
    const cuda::Divider by(d);
    for (const std::int64_t n : {std::int64_t{0}, d - 1, d, 2 * d - 1, random(0, most), most})
      if (n <= most)
        EXPECT(by.divide(static_cast<std::uint32_t>(n)) == n / d, "%lld / %lld", static_cast<long long>(n),
               static_cast<long long>(d));
  }
}

void test_axes(const Params& p) {
  const Problem q = problem_of(p, 1);
  for (int d = 0; d < kSpatial; ++d) {
    const Axis& axis = q.axis[d];
    for (int o = 0; o < axis.out; ++o) {
      int begin, end;
      axis.taps(o, begin, end);
      const Taps want = taps_inside(p, d, o);
      EXPECT(begin == want.begin && (end == want.end || (end <= begin && want.end <= want.begin)), "%s",
             describe(p).c_str());
    }
    for (int i = 0; i < axis.in; ++i) {
      int begin, end;
      axis.covering(i, begin, end);
      for (int o = 0; o < axis.out; ++o) {
        int want = -1;
        for (int t = 0; t < axis.kernel; ++t)
          if (axis.at(o, t) == i) want = t;
        const int got = o >= begin && o < end ? axis.tap(i, o) : -1;
        EXPECT(got == want, "axis %d, window %d, coordinate %d: %s", d, o, i, describe(p).c_str());
      }
    }
  }
}

void test_order(const Params& p) {
  for (const bool channels_first : {false, true}) {
    const cuda::Order order = cuda::order_of(p.out, p.c, channels_first);
    std::vector<int> seen(order.count);
    for (std::uint32_t i = 0; i < order.count; ++i) {
      int c, at[kSpatial];
      order.place(i, c, at);
      const bool inside = c >= 0 && c < p.c && at[0] >= 0 && at[0] < p.out[0] && at[1] >= 0 &&
                          at[1] < p.out[1] && at[2] >= 0 && at[2] < p.out[2];
      EXPECT(inside, "%s", describe(p).c_str());
      if (inside) ++seen[((c * p.out[0] + at[0]) * p.out[1] + at[1]) * p.out[2] + at[2]];
    }
    for (const int n : seen) EXPECT(n == 1, "%s", describe(p).c_str());
  }
}

// Small integers, so that there are ties; some NaN and -inf.
template <class T>
std::vector<T> random_values(Random& random, std::int64_t n) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < n; ++i) {
    const auto kind = random(0, 9);
    values.push_back(narrow<T>(kind == 0 ? NAN : kind == 1 ? -INFINITY : static_cast<double>(random(-4, 4))));
  }
  return values;
}

int vectors = 0;  // problems that the kernels over vectors took

template <class T, class A>
void test_kernels(Random& random, Params p, bool channels_last) {
  p.device.kind = DeviceKind::cuda;
  p.aligned = true;
  p.input = strides_of(p, p.in, {channels_last, random(0, 2) ? 0 : 3 * (channels_last ? p.c : 1)});
  p.output = p.argmax = strides_of(p, p.out, {channels_last, 0});
  const std::int64_t outputs = elements(p, p.output, p.out), record = p.record == Argmax::none ? 0 : outputs;
  Buffer<T> input(random_values<T>(random, elements(p, p.input, p.in)));
  Buffer<T> output(outputs), want(outputs);
  Buffer<A> argmax(record), want_argmax(record);
  forward_direct(p, input.data(), want.data(), want_argmax.data());
  const bool channels = refuse_channels_cuda(p) == nullptr;
  const auto expect_forward = [&](ForwardFn run, const char* name) {
    output = Buffer<T>(outputs), argmax = Buffer<A>(record);
    run(p, input.data(), output.data(), argmax.data());
    EXPECT(same_values(output.all(), want.all()) && same_bits(argmax.all(), want_argmax.all()), "%s: %s",
           name, describe(p).c_str());
  };
  expect_forward(forward_direct_cuda, "direct");
  if (channels) expect_forward(forward_channels_cuda, "channels"), ++vectors;
  if (record == 0) return;

  Buffer<T> values(outputs), want_values(outputs);
  gather(p, input.data(), want_argmax.data(), want_values.data());
  gather_cuda(p, input.data(), want_argmax.data(), values.data());
  EXPECT(same_bits(values.all(), want_values.all()), "gather: %s", describe(p).c_str());

  p.input = strides_of(p, p.in, {channels_last, 0});
  const std::int64_t inputs = elements(p, p.input, p.in);
  Buffer<T> want_grad(inputs);
  Buffer<T> grad(Buffer<T>(random_values<T>(random, outputs)));
  backward_direct(p, grad.data(), want_argmax.data(), want_grad.data());
  const auto expect_backward = [&](BackwardFn run, const char* name) {
    Buffer<T> grad_input(inputs);
    run(p, grad.data(), want_argmax.data(), grad_input.data());
    EXPECT(same_values(grad_input.all(), want_grad.all()), "backward %s: %s", name, describe(p).c_str());
  };
  expect_backward(backward_direct_cuda, "direct");
  if (refuse_channels_cuda(p) == nullptr) expect_backward(backward_channels_cuda, "channels");
}

template <class T>
void test_dtype(Random& random, DType dtype, int problems) {
  for (int i = 0; i < problems; ++i) {
    Params p = random_problem(random, dtype);
    const bool channels_last = random(0, 2) != 0;
    if (channels_last && random(0, 1)) p.c = 16 / sizeof(T) * random(1, 3);
    const auto kind = positions(p.window) > 256 ? 2 : random(0, 5);
    test_axes(p);
    test_order(p);
    p.record = kind == 0   ? Argmax::none
               : kind == 1 ? Argmax::index64
               : kind == 2 ? Argmax::offset32
                           : Argmax::offset8;
    if (kind == 1)
      test_kernels<T, std::int64_t>(random, p, channels_last);
    else if (kind == 2)
      test_kernels<T, std::int32_t>(random, p, channels_last);
    else
      test_kernels<T, std::uint8_t>(random, p, channels_last);
  }
}

}  // namespace

int main() {
  Random random;
  test_divider(random);
  test_dtype<float>(random, DType::f32, 60);
  test_dtype<double>(random, DType::f64, 20);
  test_dtype<bf16>(random, DType::bf16, 60);
  test_dtype<f16>(random, DType::f16, 30);
  EXPECT(vectors > 20, "only %d problems had vectors", vectors);
  return finish();
}
