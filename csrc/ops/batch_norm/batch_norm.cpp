// Batch norm over one batch: schemas, checks, allocation and choice of kernel.
#include "common/tensor.h"
#include "ops/batch_norm/batch_norm_host.h"

namespace convnorm {
namespace {

namespace bn = batch_norm;

std::tuple<Tensor, Tensor> batch_norm_train(Tensor input, OptTensor weight, OptTensor bias,
                                            OptTensor residual, double eps, bool relu) {
  const char* op = "batch_norm_train";
  bn::check_input(op, input);
  bn::check_eps(op, eps, true);
  const ChannelVector w(op, "weight", weight, input), b(op, "bias", bias, input);
  input = bn::like_result(input, input);
  residual = bn::like_result(residual, input);
  Tensor output = bn::dense_like(input), stats = bn::empty_pairs(input);
  bn::Forward p = bn::forward_params(op, input, residual, output, w, b, eps, relu);
  bn::check_values(p, input);
  bn::take_statistics(p, stats);
  bn::run(op, p);
  return {output, stats};
}

Tensor batch_norm_eval(Tensor input, OptTensor weight, OptTensor bias, OptTensor residual,
                       Tensor running_mean, Tensor running_var, double eps, bool relu) {
  const char* op = "batch_norm_eval";
  bn::check_input(op, input);
  bn::check_eps(op, eps, false);
  const ChannelVector w(op, "weight", weight, input), b(op, "bias", bias, input);
  ChannelVector mean(op, "running_mean", running_mean, input), var(op, "running_var", running_var, input);
  input = bn::like_result(input, input);
  residual = bn::like_result(residual, input);
  Tensor output = bn::dense_like(input);
  bn::Forward p = bn::forward_params(op, input, residual, output, w, b, eps, relu);
  p.train = false;
  p.mean = mean.data();
  p.var = var.data();
  p.at.mean = mean.ref();
  p.at.var = var.ref();
  bn::run(op, p);
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
  bn::check_input(op, input);
  bn::check_pairs(op, "stats", stats, input);
  ChannelVector mean(op, "running_mean", running_mean, input), var(op, "running_var", running_var, input);
  const std::int64_t channels = input.size(1), count = channels > 0 ? input.numel() / channels : 0;
  if (count == 0) return;
  const double* batch_mean = view(stats).as<double>();
  const double unbiased = static_cast<double>(count) / static_cast<double>(count - 1);
  if (input.is_cuda())
    return bn::update_on_device(
        {device_of(input), channels, mean.ref(), var.ref(), batch_mean, momentum, unbiased});
  blend(mean, running_mean, batch_mean, momentum, 1);
  blend(var, running_var, batch_mean + channels, momentum, unbiased);
}

// Rounds sums of the host, which of an empty batch are zero, into a gradient.
void finish(const ChannelVector& sums, Tensor& gradient) {
  if (gradient.is_cuda())
    torch::stable::zero_(gradient);
  else
    sums.store(gradient);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward(Tensor grad_output, Tensor input,
                                                               OptTensor weight, OptTensor bias,
                                                               OptTensor output, Tensor stats, double eps,
                                                               bool train, bool relu, bool want_input,
                                                               bool want_affine, bool want_residual) {
  const char* op = "batch_norm_backward";
  bn::check_input(op, input);
  const std::int64_t channels = input.size(1);
  const ChannelVector w(op, "weight", weight, input), b(op, "bias", bias, input);
  ChannelVector grad_w(channels), grad_b(channels);
  Tensor grad_weight = bn::affine_like(input, weight, want_affine);
  Tensor grad_bias = bn::affine_like(input, bias, want_affine);
  grad_output = bn::like_result(grad_output, input);
  output = bn::like_result(output, input);
  input = bn::like_result(input, input);
  bn::Backward p = bn::backward_params(op, grad_output, input, output, w, b, stats, eps, relu);
  p.train = train;
  p.want_input = want_input;
  p.want_affine = want_affine;
  p.grad_weight = grad_w.data();
  p.grad_bias = grad_b.data();
  if (want_affine) {
    p.at.grad_weight = channel_ref(grad_weight, float_dtype(op, "weight", grad_weight));
    p.at.grad_bias = channel_ref(grad_bias, float_dtype(op, "bias", grad_bias));
  }
  Tensor grad_input = bn::result_like(input, want_input, p.grad_input);
  Tensor grad_residual = bn::result_like(input, want_residual, p.grad_residual);
  bn::run(op, p);
  if (want_affine && (!input.is_cuda() || p.x.values() == 0)) {
    finish(grad_w, grad_weight);
    finish(grad_b, grad_bias);
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

CONVNORM_LIBRARY_IMPL(m) {
  m.impl("batch_norm_train", TORCH_BOX(&batch_norm_train));
  m.impl("batch_norm_eval", TORCH_BOX(&batch_norm_eval));
  m.impl("batch_norm_update", TORCH_BOX(&batch_norm_update));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
}

}  // namespace
}  // namespace convnorm
