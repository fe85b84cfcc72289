// Batch norm, relu and max pooling in one pass without torch: against batch norm's kernels and max pooling's
// plain loops one after the other, bit for bit. Buffers have no element to spare, and guards at their ends.
#include "ops/batch_norm_max_pool/batch_norm_max_pool.h"

#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "guarded.h"
#include "max_pool_problems.h"
#include "parallel_threads.h"

using namespace convnorm;
using namespace convnorm::batch_norm_max_pool;
using max_pool::problems::describe;
using max_pool::problems::elements;
using max_pool::problems::random_problem;
using max_pool::problems::strides_of;

namespace {

template <class T>
Buffer<T> random_values(Random& random, std::int64_t n) {
  Buffer<T> values(n);
  for (T& v : values) {
    const double x = static_cast<double>(random(-40, 40)) / 16;  // with ties, and exact in 16 bits
    if constexpr (sizeof(T) == 2)
      v.bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(x)) >> 16);
    else
      v = static_cast<T>(x);
  }
  return values;
}

template <class T>
bool same_bits(const std::vector<T, Guarded<T>>& a, const std::vector<T, Guarded<T>>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

NormView view(const void* data, const max_pool::Params& p, const Strides& s) {
  return {const_cast<void*>(data), p.n, p.c, max_pool::plane(p), p.in, s.n, s.c, s.s};
}

// What both sides share: batch norm's problem without its images.
template <class Norm>
Norm norm_problem(const max_pool::Params& p, bool rows, bool relu, Buffer<double>& mean, Buffer<double>& var,
                  const Buffer<double>& weight) {
  Norm q;
  q.dtype = p.dtype;
  q.rows = rows;
  q.relu = relu;
  q.eps = 1e-5;
  q.weight = weight.data();
  q.mean = mean.data();
  q.var = var.data();
  return q;
}

template <class Row, class Run>
void each_kernel(std::span<const Row> rows, bool channels_last, Run&& run) {
  for (const Row& row : rows) {
    const bool takes = std::string(row.name).find(channels_last ? "_rows_" : "_planes_") != std::string::npos;
    if (row.isa > supported_isa() || !takes) continue;
    set_isa(name(row.isa));
    for (int threads : {1, 3}) {
      test_threads = threads;
      run(row);
    }
  }
  set_isa("auto");
}

const batch_norm::Kernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return batch_norm::kernels_avx512;
  if (isa == Isa::avx2) return batch_norm::kernels_avx2;
#endif
  return batch_norm::kernels_generic;
}

template <class T, class A>
void test_problem(Random& random, max_pool::Params p, bool rows) {
  const bool relu = random(0, 3) > 0;
  p.input = strides_of(p, p.in, {rows, 0});
  p.output = p.argmax = strides_of(p, p.out, {rows, 0});
  const auto x = random_values<T>(random, elements(p, p.input, p.in));
  const auto grad = random_values<T>(random, elements(p, p.output, p.out));
  const auto weight = random_values<double>(random, p.c);
  Buffer<double> mean(p.c), var(p.c), want_mean(p.c), want_var(p.c);
  Buffer<double> sums(2 * p.c), want_sums(2 * p.c);
  Buffer<T> y(x), g(x), out(grad), want(grad), grad_x(x), want_grad(x);
  Buffer<A> codes(grad.size()), want_codes(grad.size());

  each_kernel(forward_kernels(), rows, [&](const auto& row) {
    const batch_norm::Kernels& norm = kernels_of(row.isa);
    auto q = norm_problem<batch_norm::Forward>(p, rows, relu, want_mean, want_var, weight);
    q.x = view(x.data(), p, p.input);
    q.out = view(y.data(), p, p.input);
    (rows ? norm.forward_rows : norm.forward_planes)(q);
    max_pool::forward_direct(p, y.data(), want.data(), want_codes.data());

    Forward f;
    f.norm = norm_problem<batch_norm::Forward>(p, rows, relu, mean, var, weight);
    f.norm.x = q.x;
    f.pool = p;
    f.output = out.data();
    f.argmax = codes.data();
    row.run(f);
    EXPECT(same_bits(out, want) && same_bits(codes, want_codes), "%s: %s", row.name, describe(p).c_str());
    EXPECT(same_bits(mean, want_mean) && same_bits(var, want_var), "%s: %s", row.name, describe(p).c_str());
  });

  each_kernel(backward_kernels(), rows, [&](const auto& row) {
    const batch_norm::Kernels& norm = kernels_of(row.isa);
    max_pool::backward_direct(p, grad.data(), codes.data(), g.data());
    auto q = norm_problem<batch_norm::Backward>(p, rows, relu, mean, var, weight);
    q.x = view(x.data(), p, p.input);
    q.grad_output = view(g.data(), p, p.input);
    q.grad_input = view(want_grad.data(), p, p.input);
    q.grad_weight = want_sums.data();
    q.grad_bias = want_sums.data() + p.c;
    (rows ? norm.backward_rows : norm.backward_planes)(q);

    Backward b;
    b.norm = norm_problem<batch_norm::Backward>(p, rows, relu, mean, var, weight);
    b.norm.x = q.x;
    b.norm.grad_input = view(grad_x.data(), p, p.input);
    b.norm.grad_weight = sums.data();
    b.norm.grad_bias = sums.data() + p.c;
    b.pool = p;
    b.grad_output = grad.data();
    b.argmax = codes.data();
    row.run(b);
    EXPECT(same_bits(grad_x, want_grad) && same_bits(sums, want_sums), "%s: %s", row.name,
           describe(p).c_str());
  });
}

template <class T>
void test_dtype(DType dtype, int problems) {
  Random random;
  for (int i = 0; i < problems; ++i) {
    max_pool::Params p = random_problem(random, dtype);
    if (i % 50 == 0) {  // enough for parts of several images, and for bands
      p.n = 3;
      p.c = 64 + i % 3;
      p.in = {1, 66, 70 + i % 7};
      p.window = {{1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}};
      p.out = {1, 33, (p.in[2] - 1) / 2 + 1};
    }
    p.record = max_pool::positions(p.window) > 256 ? max_pool::Argmax::offset32 : max_pool::Argmax::offset8;
    const bool rows = random(0, 1);
    if (p.record == max_pool::Argmax::offset8)
      test_problem<T, std::uint8_t>(random, p, rows);
    else
      test_problem<T, std::int32_t>(random, p, rows);
  }
}

}  // namespace

int main() {
  test_ignores_grain = true;
  test_dtype<float>(DType::f32, 600);
  test_dtype<double>(DType::f64, 200);
  test_dtype<bf16>(DType::bf16, 200);
  return finish();
}
