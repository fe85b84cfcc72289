// Convolution: schemas, allocation and choice of kernel, for all three passes.
#include "common/registry.h"
#include "common/tensor.h"
#include "ops/conv/conv_arguments.h"

namespace convnorm::conv {
namespace {

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

void run(const Kernel& row, Params p) {
  OptTensor work;
  if (row.workspace) {
    work = workspace(p.device, row.workspace(p));
    p.workspace = work->data_ptr();
  }
  row.run(p);
}

void run(const char* op, const Params& p) { run(choose(op, kernels(p.pass), p), p); }

Layout pick(const Tensor& a, const Tensor& b) {
  const bool last =
      suggested_layout(a) == Layout::channels_last || suggested_layout(b) == Layout::channels_last;
  return last ? Layout::channels_last : Layout::contiguous;
}

// The residual in the layout of the output: itself where it has that, else a copy.
Tensor laid_out(const char* op, const Tensor& input, const Tensor& residual, const Tensor& output) {
  check_pair(op, "input", input, "residual", residual);
  check_size(op, "residual", residual, sizes_of(output));
  const View r = view(residual), o = view(output);
  bool same = true;
  for (int i = 0; i < o.dim; ++i) same = same && (o.sizes[i] < 2 || r.strides[i] == o.strides[i]);
  if (same) return residual;
  Tensor copy = empty(output, sizes_of(output), suggested_layout(output));
  return torch::stable::copy_(copy, residual);
}

// A checked forward problem with its output, and what it reads besides input and weight.
struct Forward {
  Params p;
  Tensor output, bias;
  OptTensor residual;
};

Forward prepare(const char* op, const Tensor& input, const Tensor& weight, const OptTensor& bias,
                const OptTensor& residual, const Geometry& g, bool relu) {
  const Ints weight_size = sizes_of(weight);
  const Args a = check_args(op, weight.dim(), kernel_of(weight_size), g);
  const Ints out_size = check_shapes(a, sizes_of(input), weight_size);
  const DType dtype = float_dtype(op, "input", input);
  check_pair(op, "input", input, "weight", weight);
  Forward f;
  if (bias) {
    check_pair(op, "input", input, "bias", *bias);
    check_size(op, "bias", *bias, {weight_size[0]});
    f.bias = torch::stable::contiguous(*bias);
  }
  f.output = empty(input, out_size, pick(input, weight));
  if (residual) f.residual = laid_out(op, input, *residual, f.output);
  f.p = make_params(Pass::forward, a, dtype, input, weight, f.output);
  f.p.bias = bias ? f.bias.data_ptr() : nullptr;
  f.p.residual = f.residual ? f.residual->data_ptr() : nullptr;
  f.p.relu = relu;
  return f;
}

std::int64_t packed_bytes(const Kernel& row, const Params& p) {
  return row.packing ? row.packing->bytes(p) : 0;
}

// Packed weights are those of the kernel that is chosen, by their size.
void take_packed(const Tensor& input, const Tensor& packed, const Kernel& row, Params& p) {
  const char* op = "conv_act";
  const std::int64_t want = packed_bytes(row, p);
  check_same_device(op, "input", input, "packed", packed);
  check(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() && packed.numel() == want, op,
        ": packed (", packed.numel(), " of ", dtype_name(packed.scalar_type()), ") must be the ", want,
        " bytes (uint8) that conv_pack makes of this weight for this input, for ", row.name);
  p.packed = want > 0 ? packed.data_ptr() : nullptr;
}

Tensor forward(const Tensor& input, const Tensor& weight, OptTensor bias, Ints stride, Ints padding,
               Ints dilation, std::int64_t groups) {
  Forward f =
      prepare("conv_forward", input, weight, bias, std::nullopt, {stride, padding, dilation, groups}, false);
  if (f.output.numel() > 0) run("conv_forward", f.p);
  return f.output;
}

// The kernels are those of conv_forward.
Tensor conv_act(const Tensor& input, const Tensor& weight, OptTensor bias, OptTensor residual, Ints stride,
                Ints padding, Ints dilation, std::int64_t groups, bool relu, OptTensor packed) {
  Forward f = prepare("conv_act", input, weight, bias, residual, {stride, padding, dilation, groups}, relu);
  if (f.output.numel() == 0) return f.output;
  const Kernel& row = choose("conv_forward", kernels(Pass::forward), f.p);
  if (packed) take_packed(input, *packed, row, f.p);
  run(row, f.p);
  return f.output;
}

Tensor conv_pack(const Tensor& input, const Tensor& weight, Ints stride, Ints padding, Ints dilation,
                 std::int64_t groups) {
  const Forward f = prepare("conv_pack", input, weight, std::nullopt, std::nullopt,
                            {stride, padding, dilation, groups}, false);
  const bool any = f.output.numel() > 0;
  const Kernel* row = any ? &choose("conv_forward", kernels(Pass::forward), f.p) : nullptr;
  const std::int64_t bytes = any ? packed_bytes(*row, f.p) : 0;
  Tensor packed = empty(input, {bytes}, Layout::contiguous, ScalarType::Byte);
  if (bytes > 0) row->packing->pack(f.p, packed.data_ptr());
  return packed;
}

Tensor by_input(const Tensor& grad_output, const Tensor& weight, Ints input_size, Ints stride, Ints padding,
                Ints dilation, std::int64_t groups) {
  const char* op = "conv_by_input";
  const Ints weight_size = sizes_of(weight);
  const Args a = check_args(op, weight.dim(), kernel_of(weight_size), {stride, padding, dilation, groups});
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
  const Args a = check_args(op, dim, kernel_of(weight_size), {stride, padding, dilation, groups});
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
      "conv_act(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, SymInt[] padding, "
      "int[] dilation, int groups, bool relu, Tensor? packed=None) -> Tensor");
  m.def(
      "conv_pack(Tensor input, Tensor weight, int[] stride, SymInt[] padding, int[] dilation, int groups) -> "
      "Tensor");
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
  m.impl("conv_act", TORCH_BOX(&convnorm::conv::conv_act));
  m.impl("conv_pack", TORCH_BOX(&convnorm::conv::conv_pack));
  m.impl("conv_by_input", TORCH_BOX(&convnorm::conv::by_input));
  m.impl("conv_by_weight", TORCH_BOX(&convnorm::conv::by_weight));
}
