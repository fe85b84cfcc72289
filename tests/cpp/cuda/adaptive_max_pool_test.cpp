// Adaptive max pooling and un-pooling for CUDA, run by the host: tiles by brute force, and results against
// the CPU's plain loops, bit for bit. Indices are any: repeated, and outside the plane.
#include "ops/max_pool/cuda/adaptive_max_pool_problem.h"

#include <algorithm>

#include "cuda/values.h"
#include "max_pool_problems.h"

using namespace convnorm;
using namespace convnorm::max_pool;
using namespace convnorm::max_pool::problems;

namespace {

constexpr std::int64_t kFar = std::int64_t{1} << 40;

// A block's elements are all outputs of its planes, in order; its cells, over all blocks, the planes.
void test_tiles(const Params& p, int cells) {
  const Tiles t = tiles_of(p, cells);
  EXPECT(t.planes * t.positions <= cells && t.positions > 0, "%s", describe(p).c_str());
  std::vector<int> outputs(static_cast<std::size_t>(t.planes) * t.outputs), latest(t.planes, -1);
  for (int e = 0; e < t.elements(); ++e) {
    int k, output;
    t.element(e, k, output);
    const bool inside = k >= 0 && k < t.planes && output > latest[k] && output < t.outputs;
    EXPECT(inside, "%s", describe(p).c_str());
    if (!inside) return;
    latest[k] = output;
    ++outputs[k * t.outputs + output];
    int at[kSpatial];
    t.coordinates(output, at);
    EXPECT((at[0] * p.out[1] + at[1]) * p.out[2] + at[2] == output && at[1] < p.out[1] && at[2] < p.out[2],
           "%s", describe(p).c_str());
  }
  EXPECT(std::all_of(outputs.begin(), outputs.end(), [](int n) { return n == 1; }), "%s",
         describe(p).c_str());
  std::vector<int> used(static_cast<std::size_t>(t.planes) * t.positions);
  for (int k = 0; k < t.planes; ++k)
    for (int i = 0; i < t.positions; ++i) ++used[t.cell(k, i)];
  EXPECT(std::all_of(used.begin(), used.end(), [](int n) { return n == 1; }), "%s", describe(p).c_str());
  EXPECT(t.channel_groups * t.planes >= p.c && (t.channel_groups - 1) * t.planes < p.c &&
             t.position_tiles * t.positions >= t.plane && (t.position_tiles - 1) * t.positions < t.plane,
         "%s", describe(p).c_str());
}

template <class T>
std::vector<T> random_values(Random& random, std::int64_t n, bool integers) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < n; ++i) {
    const auto kind = integers ? random(0, 9) : 9;
    values.push_back(narrow<T>(kind == 0   ? NAN
                               : kind == 1 ? -INFINITY
                               : integers  ? static_cast<double>(random(-4, 4))
                                           : static_cast<double>(random(-4000, 4000)) / 977));
  }
  return values;
}

int vectors = 0, warps = 0, tiled = 0, broken_planes = 0;

template <class T>
void test_forward(Random& random, Params p, bool channels_last) {
  p.aligned = true;
  p.input = strides_of(p, p.in, {channels_last, random(0, 2) ? 0 : 3 * (channels_last ? p.c : 1)});
  const std::int64_t outputs = elements(p, p.output, p.out);
  const std::int64_t record = p.record == Argmax::none ? 0 : outputs;
  Buffer<T> input(random_values<T>(random, elements(p, p.input, p.in), true)), want(outputs);
  Buffer<std::int64_t> want_indices(record);
  const Params q = merged(p);
  adaptive_direct(p, input.data(), want.data(), want_indices.data());
  const auto expect = [&](ForwardFn run, const char* name) {
    Buffer<T> output(outputs);
    Buffer<std::int64_t> indices(record);
    run(q, input.data(), output.data(), indices.data());
    EXPECT(same_values(output.all(), want.all()) && same_bits(indices.all(), want_indices.all()), "%s: %s",
           name, describe(p).c_str());
  };
  expect(adaptive_direct_cuda, "direct");
  if (!refuse_channels_cuda(q)) expect(adaptive_channels_cuda, "channels"), ++vectors;
  if (!refuse_warp_cuda(q)) expect(adaptive_warp_cuda, "warp"), ++warps;
}

// Few different ones, so that threads of a block meet; `outside` of them are not in the plane.
std::vector<std::int64_t> random_indices(Random& random, const Params& p, std::int64_t n, bool outside) {
  std::vector<std::int64_t> indices;
  const std::int64_t most = random(0, 1) ? plane(p) - 1 : std::min<std::int64_t>(plane(p) - 1, 3);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto kind = outside ? random(0, 59) : 9;
    indices.push_back(kind == 0   ? -1
                      : kind == 1 ? plane(p)
                      : kind == 2 ? kFar + random(0, most)
                      : kind == 3 ? -kFar
                                  : random(0, most));
  }
  return indices;
}

// What un-pooling is to give where some indices are bad: NaN in their planes.
template <class T>
void spoil(const Params& p, const std::vector<std::int64_t>& indices, std::vector<T>& whole) {
  for (std::int64_t n = 0; n < p.n; ++n)
    for (std::int64_t c = 0; c < p.c; ++c) {
      bool bad = false;
      for (std::int64_t d = 0; d < p.out[0]; ++d)
        for (std::int64_t h = 0; h < p.out[1]; ++h)
          for (std::int64_t w = 0; w < p.out[2]; ++w) {
            const Strides& s = p.argmax;
            const std::int64_t i = indices[n * s.n + c * s.c + d * s.s[0] + h * s.s[1] + w * s.s[2]];
            bad = bad || i < 0 || i >= plane(p);
          }
      broken_planes += bad;
      for (std::int64_t i = 0; bad && i < plane(p); ++i)
        whole[n * p.input.n + c * p.input.c + i * p.input.s[2]] = narrow<T>(NAN);
    }
}

template <class T>
void test_indices(Random& random, Params p, bool channels_last) {
  p.input = strides_of(p, p.in, {channels_last, 0});
  p.output = strides_of(p, p.out, {channels_last, random(0, 3) ? 0 : 2 * (channels_last ? p.c : 1)});
  const std::int64_t inputs = elements(p, p.input, p.in), outputs = elements(p, p.argmax, p.out),
                     values_size = elements(p, p.output, p.out);
  const bool outside = random(0, 1);
  Buffer<std::int64_t> indices(random_indices(random, p, outputs, outside));
  Buffer<T> values(random_values<T>(random, values_size, false));
  Buffer<T> want(inputs), got(inputs);
  tiled += tiles_of(p, 4096).position_tiles > 1;
  spread_indices(p, values.data(), indices.data(), want.data());
  spread_cuda(p, values.data(), indices.data(), got.data());
  EXPECT(same_bits(got.all(), want.all()), "spread: %s", describe(p).c_str());

  Buffer<T> placed(inputs), unpooled(inputs);
  const BadIndex bad = place_indices(p, values.data(), indices.data(), placed.data());
  std::vector<T> expected = placed.all();
  if (bad.found) spoil(p, indices.all(), expected);
  place_cuda(p, values.data(), indices.data(), unpooled.data());
  EXPECT(same_values(unpooled.all(), expected), "place: %s", describe(p).c_str());

  Buffer<T> source(random_values<T>(random, inputs, true)), picked(values_size), want_picked(values_size);
  pick_indices(p, source.data(), indices.data(), want_picked.data());
  gather_cuda(p, source.data(), indices.data(), picked.data());
  EXPECT(same_bits(picked.all(), want_picked.all()), "pick: %s", describe(p).c_str());
}

Params random_adaptive(Random& random, DType dtype, int trial) {
  Params p;
  p.dtype = dtype;
  p.device.kind = DeviceKind::cuda;
  p.n = random(1, 3);
  p.c = random(0, 3) ? random(1, 9) : random(10, 70);
  const bool whole = random(0, 2) == 0, large = trial % 8 == 0;
  for (int d = static_cast<int>(random(0, 2)); d < kSpatial; ++d) {
    p.in[d] = random(1, d == 2 ? 40 : 7);
    p.out[d] = whole ? 1 : random(1, random(0, 3) ? p.in[d] : 2 * p.in[d] + 1);
  }
  if (large) {  // of several tiles
    p.n = 1, p.c = random(1, 3) * (random(0, 1) ? 1 : 8);
    p.in = {random(1, 2), random(50, 70), random(70, 90)};
    p.out = {1, random(1, 20), random(1, 30)};
  }
  return p;
}

template <class T>
void test_dtype(Random& random, DType dtype, int trials) {
  for (int trial = 0; trial < trials; ++trial) {
    Params p = random_adaptive(random, dtype, trial);
    const bool channels_last = random(0, 2) != 0;
    if (channels_last && random(0, 1)) p.c = 16 / sizeof(T) * random(1, 3);
    p.record = random(0, 3) ? Argmax::index64 : Argmax::none;
    p.output = p.argmax = strides_of(p, p.out, {channels_last, 0});
    for (const int cells : {32, 300, 4096}) test_tiles(p, cells);
    test_forward<T>(random, p, channels_last);
    p.record = Argmax::index64;
    test_indices<T>(random, p, channels_last);
  }
}

void test_refusals() {
  Params p;
  p.n = 1, p.c = 1, p.in = {1, 1, 8}, p.out = {1, 1 << 13, 1 << 13};
  EXPECT(refuse_indices_cuda(p), "2^26 values per plane need more than 31 bits");
  p.out = {1, 1, 4};
  EXPECT(!refuse_indices_cuda(p) && !refuse_cuda(p), "a small plane is refused");
  p.in = {1, 1 << 16, 1 << 15};
  EXPECT(refuse_indices_cuda(p) && refuse_cuda(p), "2^31 positions need more than 31 bits");
}

}  // namespace

int main() {
  Random random;
  test_dtype<float>(random, DType::f32, 80);
  test_dtype<double>(random, DType::f64, 24);
  test_dtype<bf16>(random, DType::bf16, 60);
  test_dtype<f16>(random, DType::f16, 30);
  test_refusals();
  EXPECT(vectors > 20 && warps > 7 && tiled > 10 && broken_planes > 50, "vectors %d, warps %d, tiled %d, %d",
         vectors, warps, tiled, broken_planes);
  return finish();
}
