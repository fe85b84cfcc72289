// Batch norm's kernels for CUDA, run by the host, against the textbook loops in double: every dtype and
// layout at odd sizes, the same bits whatever the order of threads and blocks, and statistics far from zero.
#include "ops/batch_norm/cuda/batch_norm_affine.cuh"

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/values.h"
#include "test.h"

using namespace convnorm;
using namespace convnorm::batch_norm;

namespace {

struct Sizes {
  std::int64_t n, c, inner;
  bool rows;
};

std::string describe(const Sizes& s, DType t) {
  return std::string(name(t)) + " n " + std::to_string(s.n) + " c " + std::to_string(s.c) + " inner " +
         std::to_string(s.inner) + (s.rows ? " rows" : " planes");
}

std::int64_t size(const Sizes& s) { return s.n * s.c * s.inner; }

template <class T>
NormView dense(const Sizes& s, T* data) {
  NormView v;
  v.data = data;
  v.outer = s.n, v.channels = s.c, v.inner = s.inner;
  v.size = {1, 1, s.inner};
  v.outer_stride = s.c * s.inner;
  v.channel_stride = s.rows ? 1 : s.inner;
  const std::int64_t step = s.rows ? s.c : 1;
  v.stride = {s.inner * step, s.inner * step, step};
  return v;
}

// --- every element once
// ------------------------------------------------------------------------------------------

template <bool kRows, int V>
void test_walk(const Sizes& s, const Plan& plan) {
  std::vector<int> seen(size(s));
  std::vector<std::int64_t> counted(plan.pieces());
  for (std::int64_t block = 0; block < plan.blocks(); ++block)
    for (unsigned thread = 0; thread < kThreads; ++thread) {
      blockIdx = dim3(static_cast<unsigned>(block));
      threadIdx = dim3(thread);
      const Place place(plan, false);
      for (Walk<kRows, V> walk(plan, place); walk.more(); walk.next())
        for (int v = 0; v < V; ++v) {
          const std::int64_t i = walk.offset + v, c = kRows ? i % s.c : i / s.inner % s.c;
          ++seen[i];
          if (c == 0) ++counted[place.piece];
        }
    }
  const bool once = std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; });
  EXPECT(once, "%s: some element is not visited once", describe(s, DType::f32).c_str());
  for (std::int64_t i = 0; i < plan.pieces(); ++i)
    EXPECT(counted[i] == plan.count(i), "%s: piece %d", describe(s, DType::f32).c_str(), static_cast<int>(i));
}

template <int V>
void test_walk(const Sizes& s, const Plan& plan) {
  if (s.rows)
    test_walk<true, V>(s, plan);
  else
    test_walk<false, V>(s, plan);
}

void test_plan(const Sizes& s, DType dtype) {
  Forward p;
  p.dtype = dtype;
  p.x = dense<float>(s, nullptr);
  const Plan plan = s.rows ? rows_plan(p) : planes_plan(p);
  if (plan.vector == 1) return test_walk<1>(s, plan);
  if (plan.vector == 4) return test_walk<4>(s, plan);
  test_walk<8>(s, plan);
}

// --- values
// ------------------------------------------------------------------------------------------------------

template <class T>
struct Problem {
  Sizes shape;
  DType dtype;
  Buffer<T> x, residual, grad_output;
  std::vector<double> weight, bias;
  Buffer<T> weight_t, bias_t;

  Problem(Random& random, const Sizes& s, DType t, double mean, double std)
      : shape(s),
        dtype(t),
        x(draw(random, size(s), mean, std)),
        residual(draw(random, size(s), 0, 1)),
        grad_output(draw(random, size(s), 0, 1)),
        weight_t(draw(random, s.c, 1, 0.5)),
        bias_t(draw(random, s.c, 0, 0.5)) {
    weight = wide(weight_t.all());
    bias = wide(bias_t.all());
  }
  static std::vector<T> draw(Random& random, std::int64_t n, double mean, double std) {
    std::vector<T> values;
    for (std::int64_t i = 0; i < n; ++i)  // of unit variance: a sum of three
      values.push_back(
          narrow<T>(mean + std * (random(-1000, 1000) + random(-1000, 1000) + random(-1000, 1000)) / 1000.));
    return values;
  }
  PerChannel at() { return {{weight_t.data(), dtype, 1}, {bias_t.data(), dtype, 1}, {}, {}, {}, {}}; }
};

struct Flags {
  bool relu, residual, train;
};

template <class Params>
void run_cuda(Params& p, void (*rows)(const Params&), void (*planes)(const Params&)) {
  Buffer<char> work(static_cast<std::size_t>((p.rows ? rows_plan(p) : planes_plan(p)).bytes()));
  p.workspace = work.data();
  (p.rows ? rows : planes)(p);
}

template <class T>
struct Forwarded {
  Buffer<T> out;
  Buffer<double> stats;
};

template <class T>
Forwarded<T> forward_cuda(Problem<T>& q, Flags f, const std::vector<double>& given, bool resident = false) {
  Forwarded<T> result{Buffer<T>(size(q.shape)), Buffer<double>(given)};
  if (f.train) result.stats = Buffer<double>(2 * q.shape.c);
  Forward p;
  p.dtype = q.dtype;
  p.rows = q.shape.rows;
  p.relu = f.relu;
  p.train = f.train;
  p.eps = 1e-5;
  p.device.kind = DeviceKind::cuda;
  p.x = dense(q.shape, q.x.data());
  if (f.residual) p.residual = dense(q.shape, q.residual.data());
  p.out = dense(q.shape, result.out.data());
  p.at = q.at();
  p.at.mean = {result.stats.data(), DType::f64, 1};
  p.at.var = {result.stats.data() + q.shape.c, DType::f64, 1};
  run_cuda(p, resident ? forward_resident_cuda : forward_rows_cuda, forward_planes_cuda);
  return result;
}

// In doubles of the same values.
template <class T>
Forwarded<double> forward_wide(Problem<T>& q, Flags f, const std::vector<double>& given) {
  std::vector<double> x = wide(q.x.all()), residual = wide(q.residual.all());
  Forwarded<double> result{Buffer<double>(size(q.shape)), Buffer<double>(given)};
  Forward p;
  p.dtype = DType::f64;
  p.relu = f.relu;
  p.train = f.train;
  p.eps = 1e-5;
  p.x = dense(q.shape, x.data());
  if (f.residual) p.residual = dense(q.shape, residual.data());
  p.out = dense(q.shape, result.out.data());
  p.weight = q.weight.data();
  p.bias = q.bias.data();
  p.mean = result.stats.data();
  p.var = p.mean + q.shape.c;
  forward_reference(p);
  return result;
}

// |got - want| within `units` roundings of dtype, of the value and of what was added to make it.
template <class T>
void expect_near(const std::vector<T>& got, const std::vector<double>& want, DType t, double units,
                 double scale, const std::string& what) {
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double g = wide(got[i]), bound = rounding(t) * std::abs(want[i]) +
                                           units * rounding(DType::f32) * (scale + std::abs(want[i]));
    if (std::isnan(g) != std::isnan(want[i])) worst = 1e300;
    const double error = std::abs(g - want[i]);
    if (error > 0)
      worst = std::max(worst, error / (t == DType::f64 ? 1e-13 * (scale + std::abs(want[i])) : bound));
  }
  EXPECT(worst <= 1, "%s: error is %g times its bound", what.c_str(), worst);
}

int residents = 0, several_turns = 0;

// One kernel gives the bits of the two passes, on devices that hold x in few blocks or in many; others
// refuse.
template <class T>
void test_resident(Problem<T>& q, Flags f, const Forwarded<T>& want, const std::string& what) {
  Forward p;
  p.dtype = q.dtype;
  p.rows = true;
  p.device.kind = DeviceKind::cuda;
  p.x = dense(q.shape, q.x.data());
  p.out = p.x;
  const Plan plan = rows_plan(p);
  const std::int64_t turn = plan.per_outer / plan.ways * kThreads * plan.vector * std::int64_t{sizeof(T)};
  shim::processors = 1;
  shim::shared_bytes = static_cast<int>(plan.blocks() * turn);
  EXPECT(resident_refusal_cuda(p) != nullptr, "%s: does not fit, but is not refused", what.c_str());
  for (const int processors : {1, 3}) {
    shim::processors = processors;
    shim::shared_bytes = static_cast<int>(up_to(plan.blocks(), processors) * turn) + 1024;
    EXPECT(resident_refusal_cuda(p) == nullptr, "%s: %s", what.c_str(), resident_refusal_cuda(p));
    const Forwarded<T> got = forward_cuda(q, f, want.stats.all(), true);
    EXPECT(same_bits(got.out.all(), want.out.all()) && same_bits(got.stats.all(), want.stats.all()),
           "%s: one kernel gave other bits on %d processors", what.c_str(), processors);
    ++residents;
    several_turns += plan.blocks() > 2 * processors;
  }
  shim::cooperative = 0;
  EXPECT(resident_refusal_cuda(p) != nullptr, "%s: blocks cannot run at the same time", what.c_str());
  shim::cooperative = 1;
}

template <class T>
void test_forward(Random& random, const Sizes& s, DType t, Flags f, double mean, double std) {
  Problem<T> q(random, s, t, mean, std);
  std::vector<double> given(2 * s.c, 1.25);
  Forwarded<T> got = forward_cuda(q, f, given), again = forward_cuda(q, f, given);
  Forwarded<double> want = forward_wide(q, f, given);
  const std::string what = describe(s, t) + (f.train ? " train" : " eval");
  expect_near(got.out.all(), want.out.all(), t, 24, 8, what + " out");
  if (f.train)
    for (std::int64_t c = 0; c < s.c; ++c) {
      const double var = want.stats.data()[s.c + c],
                   off = std::abs(got.stats.data()[c] - want.stats.data()[c]);
      EXPECT(off <= 1e-6 * std::sqrt(var), "%s: mean is off by %g of std", what.c_str(),
             off / std::sqrt(var));
      EXPECT(std::abs(got.stats.data()[s.c + c] - var) <= 1e-6 * var, "%s: var %g", what.c_str(), var);
    }
  EXPECT(same_bits(got.out.all(), again.out.all()) && same_bits(got.stats.all(), again.stats.all()),
         "%s: another order of threads gave other bits", what.c_str());
  if (f.train && s.rows) test_resident(q, f, got, what);
}

template <class T>
struct Gradients {
  Buffer<T> input, residual;
  Buffer<double> weight, bias;
  explicit Gradients(const Sizes& s) : input(size(s)), residual(size(s)), weight(s.c), bias(s.c) {}
};

template <class T, class U>
Backward backward_params(Problem<T>& q, Flags f, U* x, U* g, U* out, Gradients<U>& to) {
  Backward p;
  p.rows = q.shape.rows;
  p.relu = f.relu;
  p.train = f.train;
  p.eps = 1e-5;
  p.x = dense(q.shape, x);
  p.grad_output = dense(q.shape, g);
  if (f.relu && f.residual) p.out = dense(q.shape, out);
  p.grad_input = dense(q.shape, to.input.data());
  if (f.residual) p.grad_residual = dense(q.shape, to.residual.data());
  return p;
}

template <class T>
Gradients<T> backward_cuda(Problem<T>& q, Flags f, std::vector<double>& stats, std::vector<T>& out) {
  Gradients<T> to(q.shape);
  Backward p = backward_params(q, f, q.x.data(), q.grad_output.data(), out.data(), to);
  p.dtype = q.dtype;
  p.device.kind = DeviceKind::cuda;
  p.at = q.at();
  p.at.mean = {stats.data(), DType::f64, 1};
  p.at.var = {stats.data() + q.shape.c, DType::f64, 1};
  p.at.grad_weight = {to.weight.data(), DType::f64, 1};
  p.at.grad_bias = {to.bias.data(), DType::f64, 1};
  run_cuda(p, backward_rows_cuda, backward_planes_cuda);
  return to;
}

template <class T>
void test_backward(Random& random, const Sizes& s, DType t, Flags f) {
  Problem<T> q(random, s, t, 0.5, 1);
  std::vector<double> given(2 * s.c, 1.25);
  Forwarded<double> forward = forward_wide(q, f, given);
  std::vector<double> stats = forward.stats.all();
  std::vector<T> out;
  for (double y : forward.out.all()) out.push_back(narrow<T>(y));
  Gradients<T> got = backward_cuda(q, f, stats, out), again = backward_cuda(q, f, stats, out);

  std::vector<double> x = wide(q.x.all()), g = wide(q.grad_output.all()), y = wide(out);
  Gradients<double> want(s);
  Backward p = backward_params(q, f, x.data(), g.data(), y.data(), want);
  p.dtype = DType::f64;
  p.weight = q.weight.data();
  p.bias = q.bias.data();
  p.mean = stats.data();
  p.var = stats.data() + s.c;
  p.grad_weight = want.weight.data();
  p.grad_bias = want.bias.data();
  backward_reference(p);
  const std::string what =
      describe(s, t) + (f.relu ? " relu" : "") + (f.residual ? " residual" : "") + " backward";
  const double terms = static_cast<double>(s.n * s.inner);
  expect_near(got.input.all(), want.input.all(), t, 24, 8, what + " grad_input");
  if (f.residual) expect_near(got.residual.all(), want.residual.all(), t, 0, 0, what + " grad_residual");
  expect_near(got.weight.all(), want.weight.all(), t == DType::f64 ? t : DType::f32, 8, std::sqrt(terms) + 4,
              what + " grad_weight");
  expect_near(got.bias.all(), want.bias.all(), t == DType::f64 ? t : DType::f32, 8, std::sqrt(terms) + 4,
              what + " grad_bias");
  EXPECT(same_bits(got.input.all(), again.input.all()) && same_bits(got.weight.all(), again.weight.all()),
         "%s: another order of threads gave other bits", what.c_str());
}

// The promise of the documentation: outputs within 1e-5 of exact for |mean| / std up to 1e6, in both layouts.
void test_far_from_zero(Random& random, const Sizes& s) {
  for (const double ratio : {1e3, 1e4, 1e6}) {
    Problem<float> q(random, s, DType::f32, ratio, 1);
    Forwarded<float> got = forward_cuda(q, {false, false, true}, std::vector<double>(2 * s.c));
    Forwarded<double> want = forward_wide(q, {false, false, true}, std::vector<double>(2 * s.c));
    double worst = 0;
    for (std::size_t i = 0; i < got.out.all().size(); ++i)
      worst = std::max(worst, std::abs(got.out.all()[i] - want.out.all()[i]));
    EXPECT(worst <= 1e-5, "%s mean/std %g: error %g", describe(s, DType::f32).c_str(), ratio, worst);
  }
}

void test_extremes(const Sizes& s) {
  const auto statistics = [&](std::vector<float> x) {
    Random random;
    Problem<float> q(random, s, DType::f32, 0, 1);
    q.x = Buffer<float>(std::move(x));
    const Flags f{false, false, true};
    const std::vector<double> none(2 * s.c);
    std::pair both(forward_cuda(q, f, none), forward_wide(q, f, none));
    if (s.rows) test_resident(q, f, both.first, describe(s, DType::f32));
    return both;
  };
  const auto make = [&](auto value) {
    std::vector<float> x(size(s));
    for (std::int64_t i = 0; i < size(s); ++i) x[i] = value(i);
    return x;
  };
  const auto expect_var = [&](const char* what, std::vector<float> x, double relative) {
    auto [got, want] = statistics(std::move(x));
    for (std::int64_t c = 0; c < s.c; ++c) {
      const double g = got.stats.data()[s.c + c], w = want.stats.data()[s.c + c];
      EXPECT(std::abs(g - w) <= relative * w, "%s %s: var %g, must be %g", describe(s, DType::f32).c_str(),
             what, g, w);
    }
  };
  const auto swing = [](std::int64_t i) { return static_cast<float>((i * 7919) % 1001 - 500) / 500; };
  expect_var("constant", make([](std::int64_t) { return 1.2e10f; }), 0);
  expect_var("zeros", make([](std::int64_t) { return 0.0f; }), 0);
  expect_var("huge", make([&](std::int64_t i) { return 1e30f * swing(i); }), 1e-6);
  expect_var("tiny", make([&](std::int64_t i) { return 1e-25f * swing(i); }), 1e-6);
  expect_var("outlier first", make([&](std::int64_t i) { return i < s.c * s.inner ? 1e4f : swing(i); }),
             1e-5);
  auto [got, want] = statistics(make([](std::int64_t i) { return i == 0 ? NAN : 1.0f; }));
  for (std::int64_t c = 0; c < s.c; ++c)
    EXPECT(std::isnan(got.stats.data()[c]) == (c == 0), "%s: NaN of channel 0, seen in %d",
           describe(s, DType::f32).c_str(), static_cast<int>(c));
}

// Every `step`th shape runs; all are cut into blocks.
template <class T>
void test_dtype(Random& random, DType t, const std::vector<Sizes>& shapes, int step) {
  int i = 0;
  for (const Sizes& s : shapes) {
    test_plan(s, t);
    if (i++ % step != 0) continue;
    const Flags f{i % 2 == 1, i % 3 == 1, i % 5 != 4};
    test_forward<T>(random, s, t, f, 0.5, 1);
    test_backward<T>(random, s, t, f);
  }
}

}  // namespace

int main() {
  Random random;
  std::vector<Sizes> shapes;
  for (const bool rows : {true, false})
    for (const std::int64_t c : {1, 3, 8, 40})
      for (const std::int64_t inner : {1, 7, 16})
        for (const std::int64_t n : {2, 5}) shapes.push_back({n, c, inner, rows});
  for (const bool rows : {true, false}) {
    shapes.push_back({3, 300, 16, rows});   // several tiles of channels
    shapes.push_back({2, 2, 17000, rows});  // several segments of a plane
    shapes.push_back({600, 33, 1, rows});
    shapes.push_back({40, 16, 320, rows});  // several pieces
  }
  test_dtype<float>(random, DType::f32, shapes, 1);
  test_dtype<bf16>(random, DType::bf16, shapes, 2);
  test_dtype<f16>(random, DType::f16, shapes, 7);
  test_dtype<double>(random, DType::f64, shapes, 5);
  for (const bool rows : {true, false}) {
    test_far_from_zero(random, {16, 12, 100, rows});
    test_far_from_zero(random, {40, 5, 331, rows});
    test_extremes({16, 5, 60, rows});
    test_extremes({16, 12, 60, rows});
  }
  EXPECT(residents > 40 && several_turns > 5, "%d, %d", residents, several_turns);
  return finish();
}
