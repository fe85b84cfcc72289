// Batch norm: schemas, checks, allocation and choice of kernel.
#include "ops/batch_norm/batch_norm.h"

#include <algorithm>

#include "common/channel_vector.h"
#include "common/registry.h"
#include "common/tensor.h"

namespace convnorm {
namespace {

namespace bn = batch_norm;

NormView norm_view(const Tensor& t) {
  const View5 v = lift(t);
  return {v.data, v.n, v.c, v.size[0] * v.size[1] * v.size[2], v.size, v.stride_n, v.stride_c, v.stride};
}

// Printed as the tensor's size; the text is made only for an error.
struct SizeOf {
  const Tensor& t;
  friend std::ostream& operator<<(std::ostream& out, const SizeOf& size) { return out << shape_text(size.t); }
};

// The dtype of input, after what every op of this room asks of it.
DType check_input(const char* op, const Tensor& input) {
  const std::int64_t dim = input.dim();
  check(dim >= 2 && dim <= kMaxDims, op, ": input of size ", SizeOf{input},
        " must be (n, c), (n, c, l), (n, c, h, w) or (n, c, d, h, w)");
  return float_dtype(op, "input", input);
}

// residual, grad_output and output have input's shape, dtype and device.
void check_like(const char* op, const char* name, const Tensor& t, const Tensor& input) {
  check(std::ranges::equal(t.sizes(), input.sizes()), op, ": ", name, " of size ", SizeOf{t},
        " must have the size of input, ", SizeOf{input});
  check(t.scalar_type() == input.scalar_type(), op, ": ", name, " has dtype ", dtype_name(t.scalar_type()),
        ", must be input's ", dtype_name(input.scalar_type()));
  check_same_device(op, "input", input, name, t);
}

// torch allows zero in evaluation only.
void check_eps(const char* op, double eps, bool train) {
  if (train) check_value(eps > 0, op, ": batch_norm eps must be positive during training, but got ", eps);
  check_value(eps >= 0, op, ": batch_norm eps must be non-negative, but got ", eps);
}

void check_stats(const char* op, const Tensor& stats, const Tensor& input) {
  check(stats.dim() == 2 && stats.size(0) == 2 && stats.size(1) == input.size(1) && stats.is_contiguous() &&
            stats.scalar_type() == ScalarType::Double,
        op, ": stats of size ", SizeOf{stats}, " must be a contiguous float64 tensor (2, ", input.size(1),
        ")");
}

// Empty tensors keep their strides, as in torch; others are dense in the layout they ask for.
Tensor dense_like(const Tensor& t) {
  return t.numel() == 0 ? torch::stable::empty_like(t) : empty(t, sizes_of(t), suggested_layout(t));
}

bool in_rows(const Tensor& t) {
  return suggested_layout(t) == Layout::channels_last || norm_view(t).inner == 1;
}

bn::Forward forward_params(const char* op, const Tensor& input, const OptTensor& residual,
                           const Tensor& output, const ChannelVector& weight, const ChannelVector& bias) {
  bn::Forward p;
  p.dtype = float_dtype(op, "input", input);
  p.rows = in_rows(input);
  p.x = norm_view(input);
  p.out = norm_view(output);
  if (residual) p.residual = norm_view(*residual);
  p.weight = weight.data();
  p.bias = bias.data();
  return p;
}

std::tuple<Tensor, Tensor> batch_norm_train(Tensor input, OptTensor weight, OptTensor bias,
                                            OptTensor residual, double eps, bool relu) {
  const char* op = "batch_norm_train";
  check_input(op, input);
  check_eps(op, eps, true);
  if (residual) check_like(op, "residual", *residual, input);
  const ChannelVector w(op, "weight", weight, input), b(op, "bias", bias, input);
  const std::int64_t channels = input.size(1);
  Tensor output = dense_like(input),
         stats = empty(input, {2, channels}, Layout::contiguous, ScalarType::Double);
  bn::Forward p = forward_params(op, input, residual, output, w, b);
  if (p.x.values() == 1) {
    const std::string size = shape_text(input);
    check_value(false, "Expected more than 1 value per channel when training, got input size torch.Size([",
                size.substr(1, size.size() - 2), "])");
  }
  p.eps = eps;
  p.relu = relu;
  p.mean = view(stats).as<double>();
  p.var = p.mean + channels;
  if (p.x.values() == 0) {
    for (std::int64_t c = 0; c < channels; ++c) p.mean[c] = 0, p.var[c] = 1;
    return {output, stats};
  }
  if (channels > 0) choose(op, bn::forward_kernels(), p).run(p);
  return {output, stats};
}

Tensor batch_norm_eval(Tensor input, OptTensor weight, OptTensor bias, OptTensor residual,
                       Tensor running_mean, Tensor running_var, double eps, bool relu) {
  const char* op = "batch_norm_eval";
  check_input(op, input);
  check_eps(op, eps, false);
  if (residual) check_like(op, "residual", *residual, input);
  const ChannelVector w(op, "weight", weight, input), b(op, "bias", bias, input);
  ChannelVector mean(op, "running_mean", running_mean, input), var(op, "running_var", running_var, input);
  Tensor output = dense_like(input);
  bn::Forward p = forward_params(op, input, residual, output, w, b);
  p.train = false;
  p.eps = eps;
  p.relu = relu;
  p.mean = mean.data();
  p.var = var.data();
  if (p.x.values() * p.x.channels > 0) choose(op, bn::forward_kernels(), p).run(p);
  return output;
}

// running = (1 - momentum) running + momentum scale batch
void blend(ChannelVector& running, const OptTensor& to, const double* batch, double momentum, double scale) {
  double* const values = running.data();
  if (!values) return;
  const double keep = 1 - momentum, share = momentum * scale;
  const std::int64_t channels = to->numel();
  for (std::int64_t c = 0; c < channels; ++c) values[c] = share * batch[c] + keep * values[c];
  running.store(*to);
}

// Of running statistics from those of a batch, with the unbiased variance; nothing is written for empty
// batches.
void batch_norm_update(OptTensor running_mean, OptTensor running_var, Tensor stats, Tensor input,
                       double momentum) {
  const char* op = "batch_norm_update";
  check_input(op, input);
  check_stats(op, stats, input);
  ChannelVector mean(op, "running_mean", running_mean, input), var(op, "running_var", running_var, input);
  const std::int64_t channels = input.size(1), count = norm_view(input).values();
  if (count == 0) return;
  const double* batch_mean = view(stats).as<double>();
  const double unbiased = static_cast<double>(count) / static_cast<double>(count - 1);
  blend(mean, running_mean, batch_mean, momentum, 1);
  blend(var, running_var, batch_mean + channels, momentum, unbiased);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward(Tensor grad_output, Tensor input,
                                                               OptTensor weight, OptTensor bias,
                                                               OptTensor output, Tensor stats, double eps,
                                                               bool train, bool relu, bool want_input,
                                                               bool want_affine, bool want_residual) {
  const char* op = "batch_norm_backward";
  check_input(op, input);
  check_like(op, "grad_output", grad_output, input);
  if (output) check_like(op, "output", *output, input);
  const std::int64_t channels = input.size(1);
  check_stats(op, stats, input);
  const ChannelVector w(op, "weight", weight, input), b(op, "bias", bias, input);
  ChannelVector grad_w(channels), grad_b(channels);
  Tensor grad_input = want_input ? dense_like(input) : empty(input, {0});
  Tensor grad_residual = want_residual ? dense_like(input) : empty(input, {0});
  Tensor grad_weight = empty(input, {want_affine ? channels : 0}, Layout::contiguous,
                             weight ? weight->scalar_type() : input.scalar_type());
  Tensor grad_bias = empty(input, {want_affine ? channels : 0}, Layout::contiguous,
                           bias ? bias->scalar_type() : input.scalar_type());
  bn::Backward p;
  p.dtype = float_dtype(op, "input", input);
  p.rows = in_rows(input);
  p.train = train;
  p.relu = relu;
  p.want_input = want_input;
  p.want_affine = want_affine;
  p.eps = eps;
  p.x = norm_view(input);
  p.grad_output = norm_view(grad_output);
  if (relu && output) p.out = norm_view(*output);
  if (want_input) p.grad_input = norm_view(grad_input);
  if (want_residual) p.grad_residual = norm_view(grad_residual);
  p.weight = w.data();
  p.bias = b.data();
  p.mean = view(stats).as<double>();
  p.var = p.mean + channels;
  p.grad_weight = grad_w.data();
  p.grad_bias = grad_b.data();
  if (p.x.values() * channels > 0) choose(op, bn::backward_kernels(), p).run(p);
  if (want_affine) {
    grad_w.store(grad_weight);
    grad_b.store(grad_bias);
  }
  return {grad_input, grad_weight, grad_bias, grad_residual};
}

STABLE_TORCH_LIBRARY_FRAGMENT(convnorm, m) {
  m.def(
      "batch_norm_train(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, float eps, bool relu)"
      " -> (Tensor output, Tensor stats)");
  m.def(
      "batch_norm_eval(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor running_mean,"
      " Tensor running_var, float eps, bool relu) -> Tensor");
  m.def(
      "batch_norm_update(Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor stats, Tensor input,"
      " float momentum) -> ()");
  m.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? output,"
      " Tensor stats, float eps, bool train, bool relu, bool want_input, bool want_affine, bool "
      "want_residual)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");
}

STABLE_TORCH_LIBRARY_IMPL(convnorm, CPU, m) {
  m.impl("batch_norm_train", TORCH_BOX(&batch_norm_train));
  m.impl("batch_norm_eval", TORCH_BOX(&batch_norm_eval));
  m.impl("batch_norm_update", TORCH_BOX(&batch_norm_update));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
}

}  // namespace
}  // namespace convnorm
