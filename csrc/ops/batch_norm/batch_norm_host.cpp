#include "ops/batch_norm/batch_norm_host.h"

#include "common/registry.h"
#include "common/tensor.h"

namespace convnorm::batch_norm {
namespace {

NormView norm_view(const Tensor& t) {
  const View5 v = lift(t);
  return {v.data, v.n, v.c, v.size[0] * v.size[1] * v.size[2], v.size, v.stride_n, v.stride_c, v.stride};
}

bool in_rows(const Tensor& t) {
  return suggested_layout(t) == Layout::channels_last || norm_view(t).inner == 1;
}

// Shared by both directions.
template <class Params>
Params params(const char* op, const Tensor& input, const ChannelVector& weight, const ChannelVector& bias,
              double eps, bool relu) {
  Params p;
  p.dtype = float_dtype(op, "input", input);
  p.rows = in_rows(input);
  p.x = norm_view(input);
  p.device = device_of(input);
  p.weight = weight.data();
  p.bias = bias.data();
  p.at.weight = weight.ref();
  p.at.bias = bias.ref();
  p.eps = eps;
  p.relu = relu;
  return p;
}

template <class Params, class Kernels>
void run_first(const char* op, Kernels kernels, Params p) {
  if (p.x.values() * p.x.channels == 0) return;
  const auto& row = choose(op, kernels, p);
  OptTensor work;
  if (row.workspace) {
    work = workspace(p.device, row.workspace(p));
    p.workspace = work->data_ptr();
  }
  row.run(p);
}

}  // namespace

void check_input(const char* op, const Tensor& input) {
  const std::int64_t dim = input.dim();
  check(dim >= 2 && dim <= kMaxDims, op, ": input of size ", SizeOf{input},
        " must be (n, c), (n, c, l), (n, c, h, w) or (n, c, d, h, w)");
  float_dtype(op, "input", input);
}

void check_eps(const char* op, double eps, bool train) {
  if (train) check_value(eps > 0, op, ": batch_norm eps must be positive during training, but got ", eps);
  check_value(eps >= 0, op, ": batch_norm eps must be non-negative, but got ", eps);
}

void check_values(const Forward& p, const Tensor& input) {
  if (p.x.values() != 1) return;
  const std::string size = text(SizeOf{input});
  check_value(false, "Expected more than 1 value per channel when training, got input size torch.Size([",
              size.substr(1, size.size() - 2), "])");
}

void check_pairs(const char* op, const char* name, const Tensor& t, const Tensor& input) {
  check(t.dim() == 2 && t.size(0) == 2 && t.size(1) == input.size(1) && t.is_contiguous() &&
            t.scalar_type() == ScalarType::Double,
        op, ": ", name, " of size ", SizeOf{t}, " must be a contiguous float64 tensor (2, ", input.size(1),
        ")");
  check_same_device(op, "input", input, name, t);
}

Tensor empty_pairs(const Tensor& input) {
  return empty(input, {2, input.size(1)}, Layout::contiguous, ScalarType::Double);
}

Tensor dense_like(const Tensor& t) {
  return t.numel() == 0 ? torch::stable::empty_like(t) : empty(t, sizes_of(t), suggested_layout(t));
}

Tensor like_result(const Tensor& t, const Tensor& input) { return operand(t, suggested_layout(input)); }
OptTensor like_result(const OptTensor& t, const Tensor& input) { return operand(t, suggested_layout(input)); }

void point_at(ChannelRef& first, ChannelRef& second, const Tensor& pairs) {
  first = {pairs.data_ptr(), DType::f64, 1};
  second = {view(pairs).as<double>() + pairs.size(1), DType::f64, 1};
}

Tensor result_like(const Tensor& input, bool wanted, NormView& view) {
  if (!wanted) return empty(input, {0});
  Tensor result = dense_like(input);
  view = norm_view(result);
  return result;
}

Tensor affine_like(const Tensor& input, const OptTensor& parameter, bool wanted) {
  return empty(input, {wanted ? input.size(1) : 0}, Layout::contiguous,
               parameter ? parameter->scalar_type() : input.scalar_type());
}

Forward forward_params(const char* op, const Tensor& input, const OptTensor& residual,
                       const OptTensor& output, const ChannelVector& weight, const ChannelVector& bias,
                       double eps, bool relu) {
  if (residual) check_like(op, "residual", *residual, input);
  Forward p = params<Forward>(op, input, weight, bias, eps, relu);
  if (output) p.out = norm_view(*output);
  if (residual) p.residual = norm_view(*residual);
  return p;
}

void take_statistics(Forward& p, Tensor& stats) {
  p.mean = view(stats).as<double>();
  p.var = p.mean + stats.size(1);
  point_at(p.at.mean, p.at.var, stats);
  if (p.x.values() > 0) return;
  torch::stable::zero_(stats);
  Tensor var = torch::stable::narrow(stats, 0, 1, 1);
  torch::stable::fill_(var, 1);
}

Backward backward_params(const char* op, const Tensor& grad_output, const Tensor& input,
                         const OptTensor& output, const ChannelVector& weight, const ChannelVector& bias,
                         const Tensor& stats, double eps, bool relu) {
  check_like(op, "grad_output", grad_output, input);
  if (output) check_like(op, "output", *output, input);
  check_pairs(op, "stats", stats, input);
  Backward p = params<Backward>(op, input, weight, bias, eps, relu);
  p.grad_output = norm_view(grad_output);
  if (relu && output) p.out = norm_view(*output);
  p.mean = view(stats).as<double>();
  p.var = p.mean + input.size(1);
  point_at(p.at.mean, p.at.var, stats);
  return p;
}

void update_on_device(const Update& p) {
  check(update_cuda != nullptr, "batch_norm_update: this build has no CUDA kernels (CONVNORM_CUDA)");
  update_cuda(p);
}

void run(const char* op, const Forward& p) { run_first(op, forward_kernels(), p); }
void run(const char* op, const Backward& p) { run_first(op, backward_kernels(), p); }

}  // namespace convnorm::batch_norm
