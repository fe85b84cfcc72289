#include "ops/conv/conv_arguments.h"

#include <algorithm>

#include "common/tensor.h"

namespace convnorm::conv {

Args check_args(const char* op, std::int64_t dim, const Ints& kernel, const Geometry& g) {
  const auto& [stride, padding, dilation, groups] = g;
  check(dim >= 3 && dim <= kMaxDims, op, ": weight has ", dim,
        " dimensions, must have 3, 4 or 5 (k, c / groups, spatial)");
  const int n = static_cast<int>(dim) - 2;
  const auto same_length = [&](const char* name, const Ints& v, int want) {
    check(static_cast<int>(v.size()) == want, op, ": ", name, " ", Shape{v}, " must have ", want, " values");
  };
  same_length("stride", stride, n);
  same_length("padding (low sides, then high sides)", padding, 2 * n);
  same_length("dilation", dilation, n);
  check(groups > 0, op, ": groups (", groups, ") must be positive");
  for (int i = 0; i < n; ++i) {
    check(stride[i] > 0, op, ": non-positive stride is not supported, got stride ", Shape{stride});
    check(dilation[i] > 0, op, ": dilation ", Shape{dilation}, " must be greater than zero");
    check(padding[i] >= 0 && padding[n + i] >= 0, op, ": negative padding is not supported, got padding ",
          Shape{padding});
    check(kernel[i] > 0, op, ": kernel size ", Shape{kernel}, " must be greater than zero");
  }
  Args a{op, n, {}, groups};
  a.window.kernel = lift(kernel.data(), n, 1);
  a.window.stride = lift(stride.data(), n, 1);
  a.window.pad = lift(padding.data(), n, 0);
  a.window.pad_hi = lift(padding.data() + n, n, 0);
  a.window.dil = lift(dilation.data(), n, 1);
  return a;
}

Ints check_shapes(const Args& a, const Ints& input, const Ints& weight) {
  check(static_cast<int>(input.size()) == a.spatial + 2, a.op, ": input of size ", Shape{input},
        " must have ", a.spatial + 2, " dimensions, as weight of size ", Shape{weight}, " has");
  check(input[1] == weight[1] * a.groups, a.op, ": given groups=", a.groups, ", weight of size ",
        Shape{weight}, ", expected input", Shape{input}, " to have ", weight[1] * a.groups,
        " channels, but got ", input[1], " channels instead");
  check(weight[0] % a.groups == 0, a.op, ": out_channels (", weight[0], ") must be divisible by groups (",
        a.groups, ")");
  check(weight[0] > 0 && input[1] > 0, a.op, ": channels must be positive, got input ", Shape{input},
        " and weight ", Shape{weight});
  Ints out{input[0], weight[0]};
  for (int d = kSpatial - a.spatial; d < kSpatial; ++d) {
    const std::int64_t in = input[d + a.spatial - 1];
    const std::int64_t room = in + a.window.pad[d] + a.window.pad_hi[d];
    check(reach(a.window, d) <= room, a.op, ": kernel ", dim_name(d), " (", reach(a.window, d),
          " = dilation ", a.window.dil[d], " * (kernel ", a.window.kernel[d],
          " - 1) + 1) can't be greater than the padded input ", dim_name(d), " (", room, ")");
    out.push_back((room - reach(a.window, d)) / a.window.stride[d] + 1);
  }
  return out;
}

void check_pair(const char* op, const char* a_name, const Tensor& a, const char* b_name, const Tensor& b) {
  check(a.scalar_type() == b.scalar_type(), op, ": ", a_name, " (", dtype_name(a.scalar_type()), ") and ",
        b_name, " (", dtype_name(b.scalar_type()), ") should have the same dtype");
  check_same_device(op, a_name, a, b_name, b);
}

void check_size(const char* op, const char* name, const Tensor& t, const Ints& want) {
  const auto got = t.sizes();
  check(std::ranges::equal(got, want), op, ": ", name, " of size ", SizeOf{t}, " must be ", Shape{want});
}

Ints kernel_of(const Ints& weight) {
  return weight.size() > 2 ? Ints(weight.begin() + 2, weight.end()) : Ints{};
}

}  // namespace convnorm::conv
