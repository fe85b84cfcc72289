// Batch norm cut where processes exchange sums, under torch's names for the parts (batch_norm_stats, _elemt,
// _backward_reduce, _backward_elemt). What crosses the cut is float64 (2, channels).
#include "common/tensor.h"
#include "ops/batch_norm/batch_norm_host.h"

namespace convnorm {
namespace {

namespace bn = batch_norm;

// mean and biased variance
Tensor batch_norm_stats(Tensor input) {
  const char* op = "batch_norm_stats";
  bn::check_input(op, input);
  const ChannelVector none(op, "weight", {}, input);
  input = bn::like_result(input, input);
  Tensor stats = bn::empty_pairs(input);
  bn::Forward p = bn::forward_params(op, input, {}, {}, none, none, 0, false);
  bn::take_statistics(p, stats);
  bn::run("batch_norm_train", p);
  return stats;
}

Tensor batch_norm_elemt(Tensor input, OptTensor weight, OptTensor bias, OptTensor residual, Tensor stats,
                        double eps, bool relu) {
  const char* op = "batch_norm_elemt";
  bn::check_input(op, input);
  bn::check_eps(op, eps, true);
  bn::check_pairs(op, "stats", stats, input);
  const ChannelVector w(op, "weight", weight, input), b(op, "bias", bias, input);
  input = bn::like_result(input, input);
  residual = bn::like_result(residual, input);
  Tensor output = bn::dense_like(input);
  bn::Forward p = bn::forward_params(op, input, residual, output, w, b, eps, relu);
  p.train = false;
  p.mean = view(stats).as<double>();
  p.var = p.mean + input.size(1);
  bn::point_at(p.at.mean, p.at.var, stats);
  bn::run("batch_norm_eval", p);
  return output;
}

// sum g xhat and sum g: of one process also its grad_weight and grad_bias
Tensor batch_norm_backward_reduce(Tensor grad_output, Tensor input, OptTensor weight, OptTensor bias,
                                  OptTensor output, Tensor stats, double eps, bool relu) {
  const char* op = "batch_norm_backward_reduce";
  bn::check_input(op, input);
  const ChannelVector w(op, "weight", weight, input), b(op, "bias", bias, input);
  grad_output = bn::like_result(grad_output, input);
  output = bn::like_result(output, input);
  input = bn::like_result(input, input);
  Tensor sums = bn::empty_pairs(input);
  bn::Backward p = bn::backward_params(op, grad_output, input, output, w, b, stats, eps, relu);
  p.want_input = false;
  p.grad_weight = view(sums).as<double>();
  p.grad_bias = p.grad_weight + input.size(1);
  bn::point_at(p.at.grad_weight, p.at.grad_bias, sums);
  if (p.x.values() == 0) torch::stable::zero_(sums);
  bn::run("batch_norm_backward", p);
  return sums;
}

// means: those sums over all processes, divided by the number of values per channel of all
std::tuple<Tensor, Tensor> batch_norm_backward_elemt(Tensor grad_output, Tensor input, OptTensor weight,
                                                     OptTensor bias, OptTensor output, Tensor stats,
                                                     Tensor means, double eps, bool relu, bool want_input,
                                                     bool want_residual) {
  const char* op = "batch_norm_backward_elemt";
  bn::check_input(op, input);
  bn::check_pairs(op, "means", means, input);
  const std::int64_t channels = input.size(1);
  const ChannelVector w(op, "weight", weight, input), b(op, "bias", bias, input);
  grad_output = bn::like_result(grad_output, input);
  output = bn::like_result(output, input);
  input = bn::like_result(input, input);
  bn::Backward p = bn::backward_params(op, grad_output, input, output, w, b, stats, eps, relu);
  bn::point_at(p.at.grad_weight, p.at.grad_bias, means);
  const double* const given = view(means).as<double>();
  ChannelVector grad_w(channels), grad_b(channels);
  for (std::int64_t c = 0; c < channels && !input.is_cuda();
       ++c) {  // the kernel divides by the values of this batch
    grad_w.data()[c] = given[c] * static_cast<double>(p.x.values());
    grad_b.data()[c] = given[channels + c] * static_cast<double>(p.x.values());
  }
  p.sums_given = true;
  p.want_input = want_input;
  p.grad_weight = grad_w.data();
  p.grad_bias = grad_b.data();
  Tensor grad_input = bn::result_like(input, want_input, p.grad_input);
  Tensor grad_residual = bn::result_like(input, want_residual, p.grad_residual);
  bn::run("batch_norm_backward", p);
  return {grad_input, grad_residual};
}

STABLE_TORCH_LIBRARY_FRAGMENT(convnorm, m) {
  m.def("batch_norm_stats(Tensor input) -> Tensor");
  m.def(
      "batch_norm_elemt(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor stats, float "
      "eps,"
      " bool relu) -> Tensor");
  m.def(
      "batch_norm_backward_reduce(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias,"
      " Tensor? output, Tensor stats, float eps, bool relu) -> Tensor");
  m.def(
      "batch_norm_backward_elemt(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias,"
      " Tensor? output, Tensor stats, Tensor means, float eps, bool relu, bool want_input, bool "
      "want_residual)"
      " -> (Tensor grad_input, Tensor grad_residual)");
}

CONVNORM_LIBRARY_IMPL(m) {
  m.impl("batch_norm_stats", TORCH_BOX(&batch_norm_stats));
  m.impl("batch_norm_elemt", TORCH_BOX(&batch_norm_elemt));
  m.impl("batch_norm_backward_reduce", TORCH_BOX(&batch_norm_backward_reduce));
  m.impl("batch_norm_backward_elemt", TORCH_BOX(&batch_norm_backward_elemt));
}

}  // namespace
}  // namespace convnorm
