// Host side of max pooling: schemas, checks, allocation, choice of kernel.
#include "ops/max_pool/max_pool_host.h"

#include "common/pool_window.h"
#include "common/registry.h"
#include "common/tensor.h"

namespace convnorm::max_pool {
namespace {

std::string op_name(const Ints& sizes) { return pool_name("max_pool", sizes); }

// Tensors as kernels on CUDA see them.
void place(Params& p, const Tensor& first, const Tensor& second, const Tensor& third) {
  p.device = device_of(first);
  p.aligned = aligned(first) && aligned(second) && aligned(third);
}

std::tuple<Tensor, Tensor> forward(Tensor input, Ints window, bool ceil_mode, std::int64_t record) {
  auto [p, output, argmax] = pooled(op_name(sizes_of(input)), input, window, ceil_mode, record);
  place(p, input, output, argmax);
  if (p.n > 0)
    choose("max_pool_forward", forward_kernels(), p)
        .run(p, input.data_ptr(), output.data_ptr(), argmax.data_ptr());
  return {output, argmax};
}

Tensor backward(Tensor grad_output, Tensor argmax, Ints input_size, Ints window) {
  const std::string op = op_name(input_size) + "_backward";
  Params p = recorded_problem(op, input_size, window, argmax);
  take_gradient(op, p, grad_output, argmax);
  Tensor grad_input = empty(grad_output, input_size, suggested_layout(argmax));
  p.input = strides_of(grad_input);
  place(p, grad_output, argmax, grad_input);
  if (p.n > 0)
    choose("max_pool_backward", backward_kernels(), p)
        .run(p, grad_output.data_ptr(), argmax.data_ptr(), grad_input.data_ptr());
  return grad_input;
}

Tensor gather_recorded(Tensor x, Tensor argmax, Ints window) {
  const Ints sizes = sizes_of(x);
  const std::string op = op_name(sizes) + "_gather";
  Params p = recorded_problem(op, sizes, window, argmax);
  check_same_device(op.c_str(), "x", x, "argmax", argmax);
  p.dtype = float_dtype(op.c_str(), "x", x);
  Tensor values = empty(x, sizes_of(argmax), suggested_layout(argmax));
  p.input = strides_of(x);
  p.output = strides_of(values);
  place(p, x, argmax, values);
  if (p.n > 0)
    choose("max_pool_gather", gather_kernels(), p).run(p, x.data_ptr(), argmax.data_ptr(), values.data_ptr());
  return values;
}

STABLE_TORCH_LIBRARY_FRAGMENT(convnorm, m) {
  m.def(
      "max_pool_forward(Tensor input, SymInt[] window, bool ceil_mode, int record) "
      "-> (Tensor output, Tensor argmax)");
  m.def(
      "max_pool_backward(Tensor grad_output, Tensor argmax, SymInt[] input_size, SymInt[] window) -> Tensor");
  m.def("max_pool_gather(Tensor x, Tensor argmax, SymInt[] window) -> Tensor");
}

CONVNORM_LIBRARY_IMPL(m) {
  m.impl("max_pool_forward", TORCH_BOX(&forward));
  m.impl("max_pool_backward", TORCH_BOX(&backward));
  m.impl("max_pool_gather", TORCH_BOX(&gather_recorded));
}

}  // namespace
}  // namespace convnorm::max_pool
