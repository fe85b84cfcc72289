// Depthwise convolution's kernels for CUDA, run by the host, against the im2col reference: exactly, on
// integers, at random geometries; every output in one strip; the same bits in another order of threads; sums
// by weight in several pieces; pixels that no window covers, and weights over the padding, do not count.
#include "ops/conv/cuda/conv_depthwise_problem.h"

#include <algorithm>
#include <string>

#include "conv_problems.h"
#include "cuda/values.h"

using namespace convnorm;
using namespace convnorm::conv;
using namespace convnorm::conv::problems;

namespace {

std::string describe(const Params& p, const char* kernel) {
  const auto list = [](const Dims& d) {
    return std::to_string(d[0]) + "x" + std::to_string(d[1]) + "x" + std::to_string(d[2]);
  };
  return std::string(kernel) + " pass " + std::to_string(int(p.pass)) + " " + name(p.dtype) + " n " +
         std::to_string(p.input.n) + " c " + std::to_string(p.input.c) + " in " + list(p.input.size) +
         " out " + list(p.output.size) + " kernel " + list(p.window.kernel) + " stride " +
         list(p.window.stride) + " pad " + list(p.window.pad) + " dil " + list(p.window.dil) +
         (p.output.stride_c == 1 ? " channels last" : "");
}

// Every output is of one strip, and every channel of one lane of one tile.
void test_strips(const Params& p, int vector) {
  const Strips q = strips_of(forward_problem(p), vector);
  const Axis* axis = q.d.axis;
  std::vector<int> seen(static_cast<std::size_t>(q.d.n * axis[0].out * axis[1].out * axis[2].out));
  for (std::int64_t strip = 0; strip < q.total; ++strip) {
    const auto [n, o] = q.at(strip);
    const bool inside = n < q.d.n && o[0] < axis[0].out && o[1] < axis[1].out && o[2] < axis[2].out;
    EXPECT(inside, "%s", describe(p, "strips").c_str());
    for (int j = 0; inside && j < kStrip && o[2] + j < axis[2].out; ++j)
      ++seen[((n * axis[0].out + o[0]) * axis[1].out + o[1]) * axis[2].out + o[2] + j];
  }
  EXPECT(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }), "%s",
         describe(p, "strips").c_str());
  EXPECT(q.lanes * q.ways == kThreads && q.tiles * q.lanes * vector >= p.input.c &&
             (q.tiles - 1) * q.lanes * vector < p.input.c &&
             q.lanes * vector <= (vector == 1 ? 64 : 16 * vector),
         "%s", describe(p, "lanes").c_str());
  const Pieces pieces = pieces_of(q);
  EXPECT(pieces.count * pieces.per_piece >= q.total && (pieces.count - 1) * pieces.per_piece < q.total, "%s",
         describe(p, "pieces").c_str());
}

template <class T>
std::vector<T> integers(Random& random, std::int64_t n) {
  std::vector<T> v;
  for (std::int64_t i = 0; i < n; ++i) v.push_back(narrow<T>(static_cast<double>(random(-4, 4))));
  return v;
}

template <class T>
struct Tensors {
  std::vector<T> input, output, weight, bias, residual;

  Tensors(Random& random, const Params& p)
      : input(integers<T>(random, count(p.input))),
        output(integers<T>(random, count(p.output))),
        weight(integers<T>(random, weight_count(p))),
        bias(integers<T>(random, p.output.c)),
        residual(integers<T>(random, count(p.output))) {}
  std::vector<T>& written(Pass pass) {
    return pass == Pass::forward ? output : pass == Pass::by_input ? input : weight;
  }
};

struct Options {
  bool bias, residual;
};

// Runs on a copy of the tensors, whose result starts as a pattern.
template <class T>
Tensors<T> run(Params p, Tensors<T> t, Options with, void (*kernel)(const Params&), std::int64_t work_bytes) {
  std::memset(t.written(p.pass).data(), 0xff, t.written(p.pass).size() * sizeof(T));
  p.input.data = t.input.data();
  p.output.data = t.output.data();
  p.weight.data = t.weight.data();
  p.bias = with.bias ? t.bias.data() : nullptr;
  p.residual = with.residual ? t.residual.data() : nullptr;
  Buffer<char> work(static_cast<std::size_t>(work_bytes));
  p.workspace = work.data();
  kernel(p);
  return t;
}

int ran_rows = 0, ran_channels = 0, several_pieces = 0;

template <class T>
void check(Random& random, Params p) {
  p.device.kind = DeviceKind::cuda;
  if (depthwise_rows_refusal(p)) return;
  const Options with{p.pass != Pass::by_input && random(0, 1), p.pass == Pass::forward && random(0, 1)};
  p.relu = p.pass == Pass::forward && random(0, 1);
  const Tensors<T> t(random, p);
  const auto reference = p.pass == Pass::forward    ? im2col_forward
                         : p.pass == Pass::by_input ? im2col_by_input
                                                    : im2col_by_weight;
  Tensors<T> want = run(p, t, with, reference, 0);
  const bool by_weight = p.pass == Pass::by_weight;
  const auto expect = [&](void (*kernel)(const Params&), const char* name, std::int64_t work) {
    Tensors<T> got = run(p, t, with, kernel, by_weight ? work : 0);
    EXPECT(same_bits(got.written(p.pass), want.written(p.pass)), "%s", describe(p, name).c_str());
    EXPECT(!with.bias || same_bits(got.bias, want.bias), "bias of %s", describe(p, name).c_str());
  };
  test_strips(p, 1);
  several_pieces += by_weight && pieces_of(strips_of(forward_problem(p), 1)).count > 1;
  expect(by_weight ? depthwise_rows_weight_cuda : depthwise_rows_cuda, "rows", depthwise_workspace<false>(p));
  ++ran_rows;
  if (depthwise_channels_refusal(p)) return;
  test_strips(p, depthwise_vector(p.dtype));
  expect(by_weight ? depthwise_channels_weight_cuda : depthwise_channels_cuda, "channels",
         depthwise_workspace<true>(p));
  ++ran_channels;
}

// The kernels' own ground: short windows along w, often channels_last with whole vectors.
Params random_depthwise(Random& random, Pass pass, DType dtype, bool large) {
  Params p{};
  p.pass = pass;
  p.dtype = dtype;
  const bool last = random(0, 2) != 0;
  p.groups =
      last && random(0, 3) ? depthwise_vector(dtype) * random(1, large ? 1 : 20) : random(1, large ? 3 : 40);
  const std::int64_t n = random(1, 3);
  std::array<std::int64_t, 5> in{n, p.groups, 1, 1, 1}, out = in, filter{p.groups, 1, 1, 1, 1};
  for (int d = static_cast<int>(random(0, 2)); d < kSpatial; ++d) {
    Window& w = p.window;
    w.kernel[d] = d == 0 ? random(1, 2) : random(1, d == 2 ? 7 : 5);
    w.stride[d] = random(1, d == 2 && pass != Pass::by_input ? 2 : 3);
    w.dil[d] = d == 2 ? 1 : random(1, 2);
    w.pad[d] = random(0, 4);
    w.pad_hi[d] = random(0, 4);
    const std::int64_t least = std::max<std::int64_t>(1, reach(w, d) - w.pad[d] - w.pad_hi[d]);
    in[2 + d] = least + random(0, d == 2 ? (large ? 90 : 20) : d == 1 && large ? 60 : 5);
    out[2 + d] = (in[2 + d] + w.pad[d] + w.pad_hi[d] - reach(w, d)) / w.stride[d] + 1;
    filter[2 + d] = w.kernel[d];
  }
  p.input = view_of(in, last);
  p.output = view_of(out, random(0, 7) ? last : !last);
  const auto s = strides_of(filter, random(0, 1));
  p.weight.stride_k = s[0];
  p.weight.stride_c = s[1];
  p.weight.stride = {s[2], s[3], s[4]};
  return p;
}

template <class T>
void check_dtype(Random& random, DType dtype, int trials) {
  for (int trial = 0; trial < trials; ++trial)
    for (Pass pass : {Pass::forward, Pass::by_input, Pass::by_weight}) {
      check<T>(random, random_depthwise(random, pass, dtype, trial % 10 == 9));
      check<T>(random, random_problem(random, pass, dtype, true));
    }
}

// An infinite weight counts where its tap is on the image only. Both kernels give the same bits.
void check_padding(Random& random, Pass pass) {
  Params p{};
  p.pass = pass;
  p.groups = 4;
  p.device.kind = DeviceKind::cuda;
  p.window.kernel = {1, 3, 3};
  p.window.pad = p.window.pad_hi = {0, 2, 2};
  p.window.stride = {1, 2, 2};
  p.input = view_of({1, 4, 1, 8, 8}, true);
  p.output = view_of({1, 4, 1, 5, 5}, true);
  p.weight = {nullptr, 9, 9, {9, 3, 1}};
  Tensors<float> t(random, p);
  if (pass == Pass::forward)
    for (int c = 0; c < 4; ++c) t.weight[c * 9] = INFINITY;
  const auto rows = pass == Pass::by_weight ? depthwise_rows_weight_cuda : depthwise_rows_cuda;
  const auto channels = pass == Pass::by_weight ? depthwise_channels_weight_cuda : depthwise_channels_cuda;
  const auto work = [&](std::int64_t bytes) { return pass == Pass::by_weight ? bytes : 0; };
  Tensors<float> a = run(p, t, {false, false}, rows, work(depthwise_workspace<false>(p)));
  Tensors<float> b = run(p, t, {false, false}, channels, work(depthwise_workspace<true>(p)));
  EXPECT(same_bits(a.written(pass), b.written(pass)), "%s", describe(p, "padding").c_str());
  if (pass == Pass::forward)  // the first tap of the second row's first output is left of the image
    for (int c = 0; c < 4; ++c)
      EXPECT(std::isfinite(a.output[5 * 4 + c]), "an infinite weight counts in the padding");
}

// A long sum: its error stays that of short ones.
void check_rounding(Random& random) {
  Params p{};
  p.pass = Pass::by_weight;
  p.groups = 8;
  p.device.kind = DeviceKind::cuda;
  p.window.kernel = {1, 1, 3};
  p.window.pad = p.window.pad_hi = {0, 0, 1};
  p.input = view_of({8, 8, 1, 100, 100}, true);
  p.output = view_of({8, 8, 1, 100, 100}, true);
  p.weight = {nullptr, 3, 3, {3, 3, 1}};
  Tensors<float> t(random, p);
  for (auto* values : {&t.input, &t.output})
    for (float& x : *values) x = static_cast<float>(random(900, 1100)) / 1000;
  Tensors<float> want = run(p, t, {false, false}, im2col_by_weight, 0);
  Tensors<float> got =
      run(p, t, {false, false}, depthwise_channels_weight_cuda, depthwise_workspace<true>(p));
  Tensors<float> again =
      run(p, t, {false, false}, depthwise_channels_weight_cuda, depthwise_workspace<true>(p));
  EXPECT(same_bits(got.weight, again.weight), "another order of threads gave other bits");
  for (std::size_t i = 0; i < got.weight.size(); ++i) {
    const double error = std::abs(got.weight[i] - want.weight[i]) / want.weight[i];
    EXPECT(error < 4 * rounding(DType::f32), "relative error %g", error);
  }
}

}  // namespace

int main() {
  Random random;
  check_dtype<float>(random, DType::f32, 40);
  check_dtype<bf16>(random, DType::bf16, 20);
  check_dtype<f16>(random, DType::f16, 10);
  check_dtype<double>(random, DType::f64, 10);
  for (Pass pass : {Pass::forward, Pass::by_input, Pass::by_weight}) check_padding(random, pass);
  check_rounding(random);
  EXPECT(ran_rows > 200 && ran_channels > 50 && several_pieces > 3, "%d, %d, %d", ran_rows, ran_channels,
         several_pieces);
  return finish();
}
