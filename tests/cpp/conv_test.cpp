// Convolution without torch: the geometry of sub-problems against brute force, then every kernel against
// plain loops.
#include "ops/conv/conv.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "conv_problems.h"
#include "guarded.h"
#include "parallel_threads.h"

using namespace convnorm;
using namespace convnorm::conv;
using namespace convnorm::conv::problems;

namespace {

// visit(output element, input element, weight element) for every multiply-add of the definition.
template <class F>
void each_product(const Params& p, F&& visit) {
  const std::int64_t cg = p.input.c / p.groups, kg = p.output.c / p.groups;
  const auto at = [](const Dims& stride, const Dims& i) {
    return stride[0] * i[0] + stride[1] * i[1] + stride[2] * i[2];
  };
  Dims o, r, i;
  for (o[0] = 0; o[0] < p.output.size[0]; ++o[0])
    for (o[1] = 0; o[1] < p.output.size[1]; ++o[1])
      for (o[2] = 0; o[2] < p.output.size[2]; ++o[2])
        for (r[0] = 0; r[0] < p.window.kernel[0]; ++r[0])
          for (r[1] = 0; r[1] < p.window.kernel[1]; ++r[1])
            for (r[2] = 0; r[2] < p.window.kernel[2]; ++r[2]) {
              bool inside = true;
              for (int d = 0; d < kSpatial; ++d) {
                i[d] = o[d] * p.window.stride[d] + r[d] * p.window.dil[d] - p.window.pad[d];
                inside = inside && i[d] >= 0 && i[d] < p.input.size[d];
              }
              if (!inside) continue;
              for (std::int64_t n = 0; n < p.input.n; ++n)
                for (std::int64_t k = 0; k < p.output.c; ++k)
                  for (std::int64_t c = 0; c < cg; ++c)
                    visit(n * p.output.stride_n + k * p.output.stride_c + at(p.output.stride, o),
                          n * p.input.stride_n + (k / kg * cg + c) * p.input.stride_c + at(p.input.stride, i),
                          k * p.weight.stride_k + c * p.weight.stride_c + at(p.weight.stride, r));
            }
}

using Product = std::array<std::int64_t, 3>;  // destination, source and weight element

// What a Dense problem multiplies; addresses are relative to those of `p`.
void products_of(const Dense& d, const void* dst_base, const void* weight_base, std::vector<Product>& out) {
  const auto elements = [&](const void* a, const void* base) {
    return (reinterpret_cast<std::intptr_t>(a) - reinterpret_cast<std::intptr_t>(base)) / bytes(d.dtype);
  };
  const std::int64_t dst0 = elements(d.dst, dst_base), weight0 = elements(d.weight, weight_base);
  // Along one axis: (destination, source, weight) offsets.
  std::array<std::vector<Product>, kSpatial> along;
  for (int s = 0; s < kSpatial; ++s)
    for (std::int64_t o = 0; o < d.axis[s].out; ++o)
      for (std::int64_t t = 0; t < d.axis[s].taps; ++t) {
        const Axis& a = d.axis[s];
        const std::int64_t i = o * a.step + a.offset + t * a.offset_step;
        if (i >= 0 && i < a.source)
          along[s].push_back({o * a.out_stride, i * a.source_stride, t * a.weight_step});
      }
  for (std::int64_t n = 0; n < d.n; ++n)
    for (std::int64_t g = 0; g < d.groups; ++g)
      for (std::int64_t k = 0; k < d.out_c; ++k)
        for (std::int64_t c = 0; c < d.red_c; ++c)
          for (const Product& x : along[0])
            for (const Product& y : along[1])
              for (const Product& z : along[2])
                out.push_back({dst0 + n * d.dst_n + (g * d.out_c + k) * d.dst_c + x[0] + y[0] + z[0],
                               n * d.src_n + (g * d.red_c + c) * d.src_c + x[1] + y[1] + z[1],
                               weight0 + g * d.weight_group + k * d.weight_out + c * d.weight_red + x[2] +
                                   y[2] + z[2]});
}

// Forward and by input as Dense problems multiply exactly the pairs of the definition.
void check_geometry() {
  Random random;
  std::vector<float> input(1 << 20), output(1 << 20), weight(1 << 16);  // addresses only
  for (int trial = 0; trial < 150; ++trial) {
    Params p = random_problem(random, Pass::forward, DType::f32);
    p.input.data = input.data();
    p.output.data = output.data();
    p.weight.data = weight.data();
    std::vector<Product> want_forward, want_by_input, forward, by_input;
    each_product(p, [&](std::int64_t o, std::int64_t i, std::int64_t w) {
      want_forward.push_back({o, i, w});
      want_by_input.push_back({i, o, w});
    });
    products_of(forward_problem(p), p.output.data, p.weight.data, forward);
    for (const Dense& d : by_input_problems(p)) products_of(d, p.input.data, p.weight.data, by_input);
    for (auto* list : {&want_forward, &want_by_input, &forward, &by_input})
      std::sort(list->begin(), list->end());
    EXPECT(forward == want_forward, "forward, trial %d", trial);
    EXPECT(by_input == want_by_input, "by input, trial %d", trial);
  }
}

// Offsets beyond 2^31 elements: computed, not allocated.
void check_large_geometry() {
  Params p{};
  p.dtype = DType::f32;
  const std::int64_t side = 100000;
  p.input = view_of({1, 1, 1, side, side}, false);
  p.output = view_of({1, 1, 1, side / 2, side / 2}, false);
  p.window.kernel = {1, 2, 2};
  p.window.stride = {1, 2, 2};
  p.weight.stride = {4, 2, 1};
  p.output.stride_n = p.output.stride[1] = 3'000'000'000;  // a view into something larger
  const Dense forward = forward_problem(p);
  EXPECT(forward.axis[1].source_stride * (side - 1) + side - 1 == side * side - 1, "the last input element");
  EXPECT(forward.axis[1].out_stride == 3'000'000'000, "%ld", long(forward.axis[1].out_stride));
  p.input.stride[1] = 4'000'000'000;
  char* base = nullptr;
  for (const Dense& d : by_input_problems(p)) {
    const std::int64_t from = reinterpret_cast<std::intptr_t>(d.dst) - reinterpret_cast<std::intptr_t>(base);
    EXPECT(from % 4'000'000'000 <= 4 && from / 4 <= 4'000'000'001, "residue at %ld", long(from));
    EXPECT(d.axis[1].out_stride == 8'000'000'000, "%ld", long(d.axis[1].out_stride));
  }
}

template <class T>
Buffer<T> integers(Random& random, std::int64_t n) {
  Buffer<T> v(n);
  for (T& x : v) x = static_cast<T>(random(-4, 4));
  return v;
}

// Values as they are stored: bfloat16 is rounded to nearest even, and compared by its bits.
template <class Stored, class T>
Stored as(T x) {
  if constexpr (std::is_same_v<Stored, T>) {
    return x;
  } else {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  }
}
template <class Stored, class T>
Buffer<Stored> as(const Buffer<T>& values) {
  Buffer<Stored> stored(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) stored[i] = as<Stored>(values[i]);
  return stored;
}
template <class T>
bool same(const Buffer<T>& a, const Buffer<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Each kernel writes what the definition says: exactly, for integers; by one thread and by three.
template <class T, class Stored = T>
void check_kernels(DType dtype, int trials, bool depthwise = false, std::int64_t channels = 9) {
  Random random;
  for (int trial = 0; trial < trials; ++trial)
    for (Pass pass : {Pass::forward, Pass::by_input, Pass::by_weight}) {
      Params p = random_problem(random, pass, dtype, depthwise, channels);
      Buffer<T> input = integers<T>(random, count(p.input)), output = integers<T>(random, count(p.output));
      Buffer<T> weight = integers<T>(random, weight_count(p)), bias = integers<T>(random, p.output.c);
      Buffer<Stored> operands[] = {as<Stored>(input), as<Stored>(output), as<Stored>(weight)};
      p.input.data = operands[0].data();
      p.output.data = operands[1].data();
      p.weight.data = operands[2].data();
      Buffer<Stored> stored_bias = as<Stored>(bias);
      p.bias = pass == Pass::by_input || random(0, 1) ? nullptr : stored_bias.data();
      const Buffer<T> residual = integers<T>(random, count(p.output));
      const Buffer<Stored> stored_residual = as<Stored>(residual);
      if (pass == Pass::forward) {
        p.residual = random(0, 1) ? stored_residual.data() : nullptr;
        p.relu = random(0, 1);
      }
      const Buffer<T>& written = pass == Pass::forward ? output : pass == Pass::by_input ? input : weight;
      Buffer<T> want(written.size(), T(0)), want_bias = bias;
      each_product(p, [&](std::int64_t o, std::int64_t i, std::int64_t w) {
        if (pass == Pass::forward) want[o] += input[i] * weight[w];
        if (pass == Pass::by_input) want[i] += output[o] * weight[w];
        if (pass == Pass::by_weight) want[w] += output[o] * input[i];
      });
      const std::int64_t places = p.output.size[0] * p.output.size[1] * p.output.size[2];
      if (p.bias)
        for (std::int64_t k = 0; k < p.output.c; ++k) {
          if (pass == Pass::by_weight) want_bias[k] = 0;
          for (std::int64_t n = 0; n < p.output.n; ++n)
            for (std::int64_t i = 0; i < places; ++i) {
              const Dims& size = p.output.size;
              const std::int64_t at =
                  n * p.output.stride_n + k * p.output.stride_c + i % size[2] * p.output.stride[2] +
                  i / size[2] % size[1] * p.output.stride[1] + i / size[2] / size[1] * p.output.stride[0];
              if (pass == Pass::forward) want[at] += bias[k];
              if (pass == Pass::by_weight) want_bias[k] += output[at];
            }
        }
      for (std::size_t i = 0; i < want.size(); ++i) {
        if (p.residual) want[i] += residual[i];
        if (p.relu) want[i] = std::max(want[i], T(0));
      }
      for (const Kernel& kernel : kernels(pass)) {
        if (kernel.device != DeviceKind::cpu || kernel.isa > supported_isa() ||
            (kernel.refuse && kernel.refuse(p)))
          continue;
        Buffer<Stored> got(want.size());
        Params q = p;
        (pass == Pass::forward    ? q.output.data
         : pass == Pass::by_input ? q.input.data
                                  : q.weight.data) = got.data();
        for (int threads : {1, 3}) {
          test_threads = threads;
          std::fill(got.begin(), got.end(), as<Stored>(T(99)));
          kernel.run(q);
          EXPECT(same(got, as<Stored>(want)), "%s, pass %d, trial %d, %d threads", kernel.name, int(pass),
                 trial, threads);
          EXPECT(!p.bias || same(stored_bias, as<Stored>(want_bias)), "bias of %s, pass %d, trial %d",
                 kernel.name, int(pass), trial);
        }
      }
    }
}

// A problem of 2x2 to 5x5 taps at each phase of the stride, of any size and padding, in any layout; channels
// across the blocks of the sum now and then.
Params winograd_problem(Random& random, Pass pass) {
  Params p{};
  p.pass = pass;
  p.dtype = DType::f32;
  const std::int64_t c = random(0, 9) ? random(1, 40) : random(250, 300), k = random(1, 40), n = random(1, 3);
  std::array<std::int64_t, 5> in{n, c, 1, 1, 1}, out{n, k, 1, 1, 1};
  const std::int64_t taps = random(2, 5);
  const bool strided = random(0, 1);
  for (int d = 1; d < kSpatial; ++d) {
    const std::int64_t step = strided ? random(1, 3) : 1, side = taps * step - random(0, step - 1);
    p.window.stride[d] = step;
    p.window.kernel[d] = side;
    p.window.pad[d] = random(0, 3);
    p.window.pad_hi[d] = random(0, 3);
    const std::int64_t pads = p.window.pad[d] + p.window.pad_hi[d];
    in[2 + d] = std::max({random(1, 25), side - pads, step});
    out[2 + d] = (in[2 + d] + pads - side) / step + 1;
  }
  p.input = view_of(in, random(0, 1));
  p.output = view_of(out, random(0, 1));
  const auto s = strides_of({k, c, 1, p.window.kernel[1], p.window.kernel[2]}, random(0, 1));
  p.weight.stride_k = s[0];
  p.weight.stride_c = s[1];
  p.weight.stride = {s[2], s[3], s[4]};
  return p;
}

Buffer<float> fractions(Random& random, std::int64_t n) {
  Buffer<float> v(n);
  for (float& x : v) x = static_cast<float>(random(-1000, 1000)) / 1000;
  return v;
}

// Every Winograd kernel within a bound of the definition, whether or not it would pay; the same bits by 1 and
// 3 threads.
void check_winograd(int trials) {
  struct Row {
    const char* name;
    Isa isa;
    const Winograd* winograd;
  };
  const std::vector<Row> rows = {
#if defined(__x86_64__)
      {"avx512", Isa::avx512, &winograd_avx512},
      {"avx2", Isa::avx2, &winograd_avx2},
#endif
      {"generic", Isa::generic, &winograd_generic},
  };
  Random random;
  for (int trial = 0; trial < trials; ++trial)
    for (Pass pass : {Pass::forward, Pass::by_input}) {
      Params p = winograd_problem(random, pass);
      Buffer<float> input = fractions(random, count(p.input)), output = fractions(random, count(p.output));
      Buffer<float> weight = fractions(random, weight_count(p));
      p.input.data = input.data();
      p.output.data = output.data();
      p.weight.data = weight.data();
      Buffer<float>& written = pass == Pass::forward ? output : input;
      const Buffer<float> residual = fractions(random, count(p.output));
      if (pass == Pass::forward) {
        p.residual = random(0, 1) ? residual.data() : nullptr;
        p.relu = random(0, 1);
      }
      std::vector<double> want(written.size(), 0.0);
      each_product(p, [&](std::int64_t o, std::int64_t i, std::int64_t w) {
        if (pass == Pass::forward) want[o] += double(input[i]) * weight[w];
        if (pass == Pass::by_input) want[i] += double(output[o]) * weight[w];
      });
      for (std::size_t i = 0; i < want.size(); ++i) {
        if (p.residual) want[i] += residual[i];
        if (p.relu) want[i] = std::max(want[i], 0.0);
      }
      const double channels = static_cast<double>(pass == Pass::forward ? p.input.c : p.output.c);
      const double taps = static_cast<double>(p.window.kernel[1] * p.window.kernel[2]);
      const double bound =  // |x| <= 1, |w| <= 1; convnorm.backends has 9 times it
          (64 + channels / 2) * 0x1p-23 * channels * taps / 9;
      const std::vector<Dense> problems =
          pass == Pass::forward ? std::vector{forward_problem(p)} : by_input_problems(p);
      for (const Row& row : rows) {
        if (row.isa > supported_isa()) continue;
        Buffer<float> first;
        for (int threads : {1, 3}) {
          test_threads = threads;
          std::fill(written.begin(), written.end(), 99.0f);
          row.winograd->run(problems.data(), problems.size(), pass == Pass::forward ? 1 : p.window.stride[2]);
          double error = 0;
          for (std::size_t i = 0; i < written.size(); ++i)
            error = std::max(error, std::abs(written[i] - want[i]));
          EXPECT(error <= bound, "winograd %s, pass %d, trial %d: %g > %g", row.name, int(pass), trial, error,
                 bound);
          if (threads == 1) first = written;
          EXPECT(written == first, "winograd %s, pass %d, trial %d: threads", row.name, int(pass), trial);
        }
      }
    }
}

}  // namespace

int main() {
  check_geometry();
  check_large_geometry();
  check_winograd(60);
  set_winograd(false);  // what follows is exact
  check_kernels<float>(DType::f32, 30);
  check_kernels<double>(DType::f64, 10);
  check_kernels<float, bf16>(DType::bf16, 20);
  check_kernels<float, bf16>(DType::bf16, 20, false, 40);
  check_kernels<float>(DType::f32, 60, true);
  check_kernels<double>(DType::f64, 20, true);
  return finish();
}
