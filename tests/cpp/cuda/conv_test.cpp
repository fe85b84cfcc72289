// Convolution's kernels for CUDA, run by the host, against the im2col reference: exactly, on integers, at
// random geometries; splits and tiles with edges; and rounding in long sums.
#include "ops/conv/cuda/conv_problem.h"

#include <string>

#include "conv_problems.h"
#include "cuda/values.h"

using namespace convnorm;
using namespace convnorm::conv;
using namespace convnorm::conv::problems;

namespace {

template <class T>
std::vector<T> integers(Random& random, std::int64_t n) {
  std::vector<T> v;
  for (std::int64_t i = 0; i < n; ++i) v.push_back(narrow<T>(static_cast<double>(random(-4, 4))));
  return v;
}

std::string describe(const Params& p, const char* kernel) {
  const auto list = [](const Dims& d) {
    return std::to_string(d[0]) + "x" + std::to_string(d[1]) + "x" + std::to_string(d[2]);
  };
  return std::string(kernel) + " pass " + std::to_string(int(p.pass)) + " " + name(p.dtype) + " n " +
         std::to_string(p.input.n) + " c " + std::to_string(p.input.c) + " k " + std::to_string(p.output.c) +
         " groups " + std::to_string(p.groups) + " in " + list(p.input.size) + " out " + list(p.output.size) +
         " kernel " + list(p.window.kernel) + " stride " + list(p.window.stride) + " dil " +
         list(p.window.dil);
}

template <class T>
struct Tensors {
  std::vector<T> input, output, weight, bias;

  void point(Params& p, bool with_bias) {
    p.input.data = input.data();
    p.output.data = output.data();
    p.weight.data = weight.data();
    p.bias = with_bias ? bias.data() : nullptr;
  }
  std::vector<T>& written(Pass pass) {
    return pass == Pass::forward ? output : pass == Pass::by_input ? input : weight;
  }
};

int ran_direct = 0, ran_tile = 0;

// Runs on a copy of the tensors, whose result starts as a pattern.
template <class T>
Tensors<T> run(Params p, Tensors<T> t, bool with_bias, void (*kernel)(const Params&), bool works) {
  std::memset(t.written(p.pass).data(), 0xff, t.written(p.pass).size() * sizeof(T));
  t.point(p, with_bias);
  Buffer<char> work(works ? static_cast<std::size_t>(weight_workspace(p)) : 0);
  p.workspace = work.data();
  kernel(p);
  return t;
}

template <class T>
void check(Random& random, Params p) {
  Tensors<T> t{integers<T>(random, count(p.input)), integers<T>(random, count(p.output)),
               integers<T>(random, weight_count(p)), integers<T>(random, p.output.c)};
  p.device.kind = DeviceKind::cuda;
  const bool with_bias = p.pass != Pass::by_input && random(0, 1);
  const std::vector<T> residual = integers<T>(random, count(p.output));
  if (p.pass == Pass::forward) {
    p.residual = random(0, 1) ? residual.data() : nullptr;
    p.relu = random(0, 1);
  }
  const auto reference = p.pass == Pass::forward    ? im2col_forward
                         : p.pass == Pass::by_input ? im2col_by_input
                                                    : im2col_by_weight;
  Tensors<T> want = run(p, t, with_bias, reference, false);
  const auto expect = [&](void (*kernel)(const Params&), const char* name, bool works) {
    Tensors<T> got = run(p, t, with_bias, kernel, works);
    EXPECT(same_bits(got.written(p.pass), want.written(p.pass)), "%s", describe(p, name).c_str());
    EXPECT(!with_bias || same_bits(got.bias, want.bias), "bias of %s", describe(p, name).c_str());
  };
  const bool by_weight = p.pass == Pass::by_weight;
  expect(by_weight ? igemm_weight_cuda : igemm_cuda, "tile", by_weight);
  ++ran_tile;
  if (direct_refusal(p)) return;
  expect(direct_cuda, "direct", false);
  ++ran_direct;
}

template <class T>
void check_dtype(Random& random, DType dtype, int trials) {
  for (int trial = 0; trial < trials; ++trial)
    for (Pass pass : {Pass::forward, Pass::by_input, Pass::by_weight})
      check<T>(random, random_problem(random, pass, dtype, trial % 4 == 3));
}

// Several tiles of rows, columns and filters, and by weight several splits.
Params large_problem(Random& random, Pass pass) {
  Params p{};
  p.pass = pass;
  p.window.kernel = {1, 3, 3};
  p.window.pad = p.window.pad_hi = {0, 1, 1};
  const std::int64_t c = 11, k = 70;
  p.input = view_of({2, c, 1, 27, 29}, random(0, 1));
  p.output = view_of({2, k, 1, 27, 29}, random(0, 1));
  const auto s = strides_of({k, c, 1, 3, 3}, random(0, 1));
  p.weight.stride_k = s[0];
  p.weight.stride_c = s[1];
  p.weight.stride = {s[2], s[3], s[4]};
  return p;
}

// A reduction of 5,000 products: the error stays that of chains of 256, far below that of one chain.
void check_rounding(Random& random) {
  Params p{};
  p.pass = Pass::forward;
  p.input = view_of({1, 5000, 1, 1, 8}, true);
  p.output = view_of({1, 16, 1, 1, 8}, true);
  p.weight.stride_k = 5000;
  p.weight.stride_c = 1;
  Tensors<float> t{{}, std::vector<float>(count(p.output)), {}, {}};
  for (std::int64_t i = 0; i < count(p.input); ++i)
    t.input.push_back(static_cast<float>(random(900, 1100)) / 1000);
  for (std::int64_t i = 0; i < weight_count(p); ++i)
    t.weight.push_back(static_cast<float>(random(900, 1100)) / 1000);
  p.device.kind = DeviceKind::cuda;
  Tensors<float> want = run(p, t, false, im2col_forward, false), got = run(p, t, false, igemm_cuda, false);
  for (std::size_t i = 0; i < got.output.size(); ++i) {
    const double error = std::abs(got.output[i] - want.output[i]) / want.output[i];
    EXPECT(error < 64 * rounding(DType::f32), "relative error %g", error);
  }
}

}  // namespace

int main() {
  Random random;
  check_dtype<float>(random, DType::f32, 12);
  check_dtype<bf16>(random, DType::bf16, 5);
  check_dtype<f16>(random, DType::f16, 5);
  check_dtype<double>(random, DType::f64, 5);
  for (Pass pass : {Pass::forward, Pass::by_input, Pass::by_weight}) {
    Params p = large_problem(random, pass);
    p.dtype = DType::f32;
    check<float>(random, p);
  }
  check_rounding(random);
  EXPECT(ran_direct > 10 && ran_tile > 60, "%d, %d", ran_direct, ran_tile);
  return finish();
}
