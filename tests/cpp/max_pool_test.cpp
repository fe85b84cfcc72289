// Max pooling without torch: every kernel against plain loops, bit for bit. Buffers have no element to spare,
// and guards at their ends: kernels that read or write across the ends of rows go too far.
#include "ops/max_pool/max_pool.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "guarded.h"
#include "max_pool_problems.h"
#include "parallel_threads.h"

using namespace convnorm;
using namespace convnorm::max_pool;
using namespace convnorm::max_pool::problems;

namespace {

// Small integers, so that there are ties; some NaN and -inf.
template <class T>
Buffer<T> random_values(Random& random, std::int64_t n, bool special) {
  Buffer<T> values(n);
  for (T& v : values) {
    const auto kind = special ? random(0, 9) : 9;
    const double x = kind == 0   ? std::numeric_limits<double>::quiet_NaN()
                     : kind == 1 ? -std::numeric_limits<double>::infinity()
                                 : static_cast<double>(random(-4, 4));
    if constexpr (sizeof(T) == 2)  // bfloat16: the upper half of a float
      v.bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(x)) >> 16);
    else
      v = static_cast<T>(x);
  }
  return values;
}

template <class T>
bool same_bits(const Buffer<T>& a, const Buffer<T>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

std::vector<std::string> ran;

template <class Row, class Run>
void each_kernel(std::span<const Row> rows, const Params& p, Run&& run) {
  for (const Row& row : rows) {
    if (row.device != DeviceKind::cpu || row.isa > supported_isa() || (row.refuse && row.refuse(p))) continue;
    for (int threads : {1, 3}) {
      test_threads = threads;
      run(row);
    }
    ran.push_back(row.name);
  }
}

template <class T, class A>
void test_problem(Random& random, Params p, bool channels_last) {
  p.input = strides_of(p, p.in, {channels_last, random(0, 2) ? 0 : 3 * (channels_last ? p.c : 1)});
  p.output = p.argmax = strides_of(p, p.out, {channels_last, 0});
  const std::int64_t outputs = elements(p, p.output, p.out);
  const auto input = random_values<T>(random, elements(p, p.input, p.in), true);
  const bool record = p.record != Argmax::none;
  Buffer<T> output(outputs), want(outputs);
  Buffer<A> argmax(record ? outputs : 0), want_argmax(argmax);
  forward_direct(p, input.data(), want.data(), want_argmax.data());
  each_kernel(forward_kernels(), p, [&](const auto& row) {
    row.run(p, input.data(), output.data(), argmax.data());
    EXPECT(same_bits(output, want) && same_bits(argmax, want_argmax), "%s: %s", row.name,
           describe(p).c_str());
  });
  if (!record) return;

  // Backward: grad_input is dense, gradients may lie in a slice.
  p.input = strides_of(p, p.in, {channels_last, 0});
  p.output = strides_of(p, p.out, {channels_last, random(0, 2) ? 0 : 2 * (channels_last ? p.c : 1)});
  const auto grad = random_values<T>(random, elements(p, p.output, p.out), false);
  Buffer<T> grad_input(elements(p, p.input, p.in)), want_grad(grad_input);
  backward_direct(p, grad.data(), want_argmax.data(), want_grad.data());
  each_kernel(backward_kernels(), p, [&](const auto& row) {
    std::memset(grad_input.data(), 0x11, grad_input.size() * sizeof(T));
    row.run(p, grad.data(), want_argmax.data(), grad_input.data());
    EXPECT(same_bits(grad_input, want_grad), "%s: %s", row.name, describe(p).c_str());
  });
}

template <class T>
void test_dtype(DType dtype, int problems) {
  Random random;
  for (int i = 0; i < problems; ++i) {
    Params p = random_problem(random, dtype);
    const bool channels_last = random(0, 2) == 0;
    const auto kind = positions(p.window) > 256 ? 2 : random(0, 5);
    p.record = kind == 0   ? Argmax::none
               : kind == 1 ? Argmax::index64
               : kind == 2 ? Argmax::offset32
                           : Argmax::offset8;
    if (kind == 1)
      test_problem<T, std::int64_t>(random, p, channels_last);
    else if (kind == 2)
      test_problem<T, std::int32_t>(random, p, channels_last);
    else
      test_problem<T, std::uint8_t>(random, p, channels_last);
  }
}

template <class Row>
void expect_all_ran(std::span<const Row> rows) {
  for (const Row& row : rows)
    if (row.device == DeviceKind::cpu && row.isa <= supported_isa())
      EXPECT(std::find(ran.begin(), ran.end(), row.name) != ran.end(), "%s took no problem", row.name);
}

}  // namespace

int main() {
  test_ignores_grain = true;
  test_dtype<float>(DType::f32, 3000);
  test_dtype<double>(DType::f64, 1000);
  test_dtype<bf16>(DType::bf16, 1000);
  expect_all_ran(forward_kernels());
  expect_all_ran(backward_kernels());
  return finish();
}
