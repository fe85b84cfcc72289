// Host side of batch norm, relu and max pooling in one pass: schemas, checks (those of both rooms, all before
// anything is computed), allocation, choice of kernel.
#include "ops/batch_norm_max_pool/batch_norm_max_pool.h"

#include "common/pool_window.h"
#include "common/registry.h"
#include "common/tensor.h"
#include "ops/batch_norm/batch_norm_host.h"
#include "ops/max_pool/max_pool_host.h"

namespace convnorm::batch_norm_max_pool {
namespace {

namespace bn = batch_norm;
namespace mp = max_pool;

std::string op_name(const Ints& sizes) { return pool_name("batch_norm_act_max_pool", sizes); }

// By the first kernel that accepts, unless there is nothing to compute; `list` names the ordered list.
template <class Kernels, class Params>
void run(const char* list, Kernels kernels, const Params& p) {
  if (p.norm.x.values() * p.norm.x.channels > 0) choose(list, kernels, p).run(p);
}

Forward forward_params(const std::string& op, const Tensor& input, const ChannelVector& weight,
                       const ChannelVector& bias, double eps, bool relu, mp::Pooled& pooled) {
  Forward p;
  p.norm = bn::forward_params(op.c_str(), input, {}, {}, weight, bias, eps, relu);
  p.pool = pooled.p;
  p.output = pooled.output.data_ptr();
  p.argmax = pooled.argmax.data_ptr();
  return p;
}

std::tuple<Tensor, Tensor, Tensor> train(Tensor input, OptTensor weight, OptTensor bias, double eps,
                                         bool relu, Ints window, bool ceil_mode, std::int64_t record) {
  const std::string op = op_name(sizes_of(input));
  bn::check_input(op.c_str(), input);
  bn::check_eps(op.c_str(), eps, true);
  const ChannelVector w(op.c_str(), "weight", weight, input), b(op.c_str(), "bias", bias, input);
  mp::Pooled pooled = mp::pooled(op, input, window, ceil_mode, record);
  Tensor stats = bn::empty_pairs(input);
  Forward p = forward_params(op, input, w, b, eps, relu, pooled);
  bn::check_values(p.norm, input);
  bn::take_statistics(p.norm, stats);
  run("batch_norm_max_pool_train", forward_kernels(), p);
  return {pooled.output, pooled.argmax, stats};
}

std::tuple<Tensor, Tensor> eval(Tensor input, OptTensor weight, OptTensor bias, Tensor running_mean,
                                Tensor running_var, double eps, bool relu, Ints window, bool ceil_mode,
                                std::int64_t record) {
  const std::string op = op_name(sizes_of(input));
  bn::check_input(op.c_str(), input);
  bn::check_eps(op.c_str(), eps, false);
  const ChannelVector w(op.c_str(), "weight", weight, input), b(op.c_str(), "bias", bias, input);
  ChannelVector mean(op.c_str(), "running_mean", running_mean, input),
      var(op.c_str(), "running_var", running_var, input);
  mp::Pooled pooled = mp::pooled(op, input, window, ceil_mode, record);
  Forward p = forward_params(op, input, w, b, eps, relu, pooled);
  p.norm.train = false;
  p.norm.mean = mean.data();
  p.norm.var = var.data();
  run("batch_norm_max_pool_eval", forward_kernels(), p);
  return {pooled.output, pooled.argmax};
}

// The tensor itself, or its values dense in a layout.
Tensor dense(const Tensor& t, Layout layout) {
  const View v = view(t);
  std::int64_t run = 1;
  bool fits = true;
  const auto next = [&](int d) {
    fits &= v.sizes[d] == 1 || v.strides[d] == run;
    run *= v.sizes[d];
  };
  if (layout == Layout::channels_last) next(1);
  for (int d = v.dim - 1; d >= 0; --d)
    if (layout == Layout::contiguous || d != 1) next(d);
  if (fits || t.numel() == 0) return t;
  Tensor copy = empty(t, sizes_of(t), layout);
  torch::stable::copy_(copy, t);
  return copy;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor argmax, Tensor input, OptTensor weight,
                                            OptTensor bias, Tensor stats, double eps, bool train, bool relu,
                                            Ints window, bool want_input, bool want_affine) {
  const Ints sizes = sizes_of(input);
  const std::string op = op_name(sizes) + "_backward";
  const char* name = op.c_str();
  bn::check_input(name, input);
  bn::check_pairs(name, "stats", stats, input);
  check(grad_output.scalar_type() == input.scalar_type(), op, ": grad_output has dtype ",
        dtype_name(grad_output.scalar_type()), ", must be input's ", dtype_name(input.scalar_type()));
  check_same_device(name, "input", input, "argmax", argmax);
  const std::int64_t channels = input.size(1);
  const ChannelVector w(name, "weight", weight, input), b(name, "bias", bias, input);
  ChannelVector grad_w(channels), grad_b(channels);
  Tensor grad_weight = bn::affine_like(input, weight, want_affine),
         grad_bias = bn::affine_like(input, bias, want_affine);
  Backward p;
  p.pool = mp::recorded_problem(op, sizes, window, argmax);
  check(p.pool.record != mp::Argmax::index64, op, ": argmax has dtype int64, must be uint8 or int32");
  mp::take_gradient(op, p.pool, grad_output, argmax);
  grad_output = dense(grad_output, suggested_layout(input));
  argmax = dense(argmax, suggested_layout(input));
  p.pool.output = strides_of(grad_output);
  p.pool.argmax = strides_of(argmax);
  // Batch norm's own grad_output is made part by part: for its checks, input stands in.
  p.norm = bn::backward_params(name, input, input, {}, w, b, stats, eps, relu);
  p.norm.grad_output = {};
  p.norm.train = train;
  p.norm.want_input = want_input;
  p.norm.want_affine = want_affine;
  p.norm.grad_weight = grad_w.data();
  p.norm.grad_bias = grad_b.data();
  p.grad_output = grad_output.data_ptr();
  p.argmax = argmax.data_ptr();
  Tensor grad_input = bn::result_like(input, want_input, p.norm.grad_input);
  run("batch_norm_max_pool_backward", backward_kernels(), p);
  if (want_affine) {
    grad_w.store(grad_weight);
    grad_b.store(grad_bias);
  }
  return {grad_input, grad_weight, grad_bias};
}

STABLE_TORCH_LIBRARY_FRAGMENT(convnorm, m) {
  m.def(
      "batch_norm_max_pool_train(Tensor input, Tensor? weight, Tensor? bias, float eps, bool relu,"
      " SymInt[] window, bool ceil_mode, int record) -> (Tensor output, Tensor argmax, Tensor stats)");
  m.def(
      "batch_norm_max_pool_eval(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean,"
      " Tensor running_var, float eps, bool relu, SymInt[] window, bool ceil_mode, int record)"
      " -> (Tensor output, Tensor argmax)");
  m.def(
      "batch_norm_max_pool_backward(Tensor grad_output, Tensor argmax, Tensor input, Tensor? weight,"
      " Tensor? bias, Tensor stats, float eps, bool train, bool relu, SymInt[] window, bool want_input,"
      " bool want_affine) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(convnorm, CPU, m) {
  m.impl("batch_norm_max_pool_train", TORCH_BOX(&train));
  m.impl("batch_norm_max_pool_eval", TORCH_BOX(&eval));
  m.impl("batch_norm_max_pool_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace convnorm::batch_norm_max_pool
