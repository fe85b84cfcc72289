// Convolution: schemas, argument checks, allocation and choice of kernel, for all three passes.
#include "ops/conv/conv.h"

#include <algorithm>

#include "common/registry.h"
#include "common/tensor.h"

namespace convnorm::conv {
namespace {

struct Args {
  const char* op;
  int spatial;
  Window window;
  std::int64_t groups;
};

// stride, dilation and groups make sense, and there are as many values as spatial dimensions.
Args check_args(const char* op, std::int64_t dim, const Ints& kernel, const Ints& stride, const Ints& padding,
                const Ints& dilation, std::int64_t groups) {
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

// Sizes of (input, weight) fit each other; returns the size of the output.
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

Weight weight_view(const Tensor& t) {
  const View5 v = lift(t);
  return {v.data, v.stride_n, v.stride_c, v.stride};
}

Params make_params(Pass pass, const Args& a, DType dtype, const Tensor& input, const Tensor& weight,
                   const Tensor& output) {
  Params p{};
  p.pass = pass;
  p.dtype = dtype;
  p.device = device_of(input);
  p.input = lift(input);
  p.output = lift(output);
  p.weight = weight_view(weight);
  p.window = a.window;
  p.groups = a.groups;
  return p;
}

void run(const char* op, Params p) {
  const Kernel& row = choose(op, kernels(p.pass), p);
  OptTensor work;
  if (row.workspace) {
    work = workspace(p.device, row.workspace(p));
    p.workspace = work->data_ptr();
  }
  row.run(p);
}

Layout pick(const Tensor& a, const Tensor& b) {
  const bool last =
      suggested_layout(a) == Layout::channels_last || suggested_layout(b) == Layout::channels_last;
  return last ? Layout::channels_last : Layout::contiguous;
}

Tensor forward(const Tensor& input, const Tensor& weight, OptTensor bias, Ints stride, Ints padding,
               Ints dilation, std::int64_t groups) {
  const char* op = "conv_forward";
  const Ints weight_size = sizes_of(weight);
  const Args a = check_args(op, weight.dim(), kernel_of(weight_size), stride, padding, dilation, groups);
  const Ints out_size = check_shapes(a, sizes_of(input), weight_size);
  const DType dtype = float_dtype(op, "input", input);
  check_pair(op, "input", input, "weight", weight);
  Tensor contiguous_bias;
  if (bias) {
    check_pair(op, "input", input, "bias", *bias);
    check_size(op, "bias", *bias, {weight_size[0]});
    contiguous_bias = torch::stable::contiguous(*bias);
  }
  Tensor output = empty(input, out_size, pick(input, weight));
  if (output.numel() == 0) return output;
  Params p = make_params(Pass::forward, a, dtype, input, weight, output);
  p.bias = bias ? contiguous_bias.data_ptr() : nullptr;
  run(op, p);
  return output;
}

Tensor by_input(const Tensor& grad_output, const Tensor& weight, Ints input_size, Ints stride, Ints padding,
                Ints dilation, std::int64_t groups) {
  const char* op = "conv_by_input";
  const Ints weight_size = sizes_of(weight);
  const Args a = check_args(op, weight.dim(), kernel_of(weight_size), stride, padding, dilation, groups);
  check_size(op, "grad_output", grad_output, check_shapes(a, input_size, weight_size));
  const DType dtype = float_dtype(op, "grad_output", grad_output);
  check_pair(op, "grad_output", grad_output, "weight", weight);
  Tensor input = empty(grad_output, input_size, pick(grad_output, weight));
  if (input.numel() > 0) run(op, make_params(Pass::by_input, a, dtype, input, weight, grad_output));
  return input;
}

std::tuple<Tensor, Tensor> by_weight(const Tensor& grad_output, const Tensor& input, Ints weight_size,
                                     Ints stride, Ints padding, Ints dilation, std::int64_t groups,
                                     bool with_bias) {
  const char* op = "conv_by_weight";
  const auto dim = static_cast<std::int64_t>(weight_size.size());
  const Args a = check_args(op, dim, kernel_of(weight_size), stride, padding, dilation, groups);
  check_size(op, "grad_output", grad_output, check_shapes(a, sizes_of(input), weight_size));
  const DType dtype = float_dtype(op, "input", input);
  check_pair(op, "grad_output", grad_output, "input", input);
  Tensor weight = empty(input, weight_size, pick(grad_output, input));
  Tensor bias = empty(input, {with_bias ? weight_size[0] : 0});
  Params p = make_params(Pass::by_weight, a, dtype, input, weight, grad_output);
  p.bias = with_bias ? bias.data_ptr() : nullptr;
  run(op, p);
  return {weight, bias};
}

}  // namespace
}  // namespace convnorm::conv

STABLE_TORCH_LIBRARY_FRAGMENT(convnorm, m) {
  m.def(
      "conv_forward(Tensor input, Tensor weight, Tensor? bias, int[] stride, SymInt[] padding, int[] "
      "dilation, "
      "int groups) -> Tensor");
  m.def(
      "conv_by_input(Tensor grad_output, Tensor weight, SymInt[] input_size, int[] stride, SymInt[] padding, "
      "int[] dilation, int groups) -> Tensor");
  m.def(
      "conv_by_weight(Tensor grad_output, Tensor input, SymInt[] weight_size, int[] stride, SymInt[] "
      "padding, "
      "int[] dilation, int groups, bool with_bias) -> (Tensor, Tensor)");
}

CONVNORM_LIBRARY_IMPL(m) {
  m.impl("conv_forward", TORCH_BOX(&convnorm::conv::forward));
  m.impl("conv_by_input", TORCH_BOX(&convnorm::conv::by_input));
  m.impl("conv_by_weight", TORCH_BOX(&convnorm::conv::by_weight));
}
