// Host side of adaptive max pooling: schemas, checks, allocation, choice of kernel.
#include "ops/max_pool/adaptive_max_pool.h"

#include <string>

#include "common/pool_window.h"
#include "common/registry.h"
#include "common/tensor.h"

namespace convnorm::max_pool {
namespace {

// A problem without its tensors; sizes are (n, c, spatial...).
Params problem(const std::string& op, const Ints& sizes, const Ints& output_size) {
  const int dims = static_cast<int>(sizes.size()) - 2;
  Params p;
  p.n = sizes[0];
  p.c = sizes[1];
  p.in = lift(sizes.data() + 2, dims, 1);
  p.out = lifted(op, "output_size", output_size, dims, 1);
  for (int d = kSpatial - dims; d < kSpatial; ++d)
    check(p.out[d] >= 0, op, ": output_size ", p.out[d], " (", dim_name(d),
          ") must be greater than or equal to 0");
  check_not_empty(op, sizes);
  return p;
}

std::tuple<Tensor, Tensor> forward(Tensor input, Ints output_size, bool return_indices) {
  const Ints sizes = sizes_of(input);
  const std::string op = pool_name("adaptive_max_pool", sizes);
  Params p = problem(op, sizes, output_size);
  p.dtype = float_dtype(op.c_str(), "input", input);
  p.record = return_indices ? Argmax::index64 : Argmax::none;
  Ints pooled{p.n, p.c};
  pooled.insert(pooled.end(), output_size.begin(), output_size.end());
  const Layout layout = suggested_layout(input);
  Tensor output = empty(input, pooled, layout);
  Tensor indices = return_indices ? empty(input, pooled, layout, ScalarType::Long)
                                  : empty(input, {0}, Layout::contiguous, ScalarType::Long);
  p.input = strides_of(input);
  p.output = strides_of(output);
  if (return_indices) p.argmax = strides_of(indices);
  p.device = device_of(input);
  p.aligned = aligned(input) && aligned(output) && aligned(indices);
  p = merged(p);
  if (output.numel() > 0)
    choose("adaptive_max_pool_forward", adaptive_kernels(), p)
        .run(p, input.data_ptr(), output.data_ptr(), indices.data_ptr());
  return {output, indices};
}

Tensor backward(Tensor grad_output, Tensor indices, Ints input_size, bool channels_last) {
  const std::string op = pool_name("adaptive_max_pool", input_size) + "_backward";
  const Ints pooled = sizes_of(indices), given = sizes_of(grad_output);
  check(pooled.size() == input_size.size() && pooled[0] == input_size[0] && pooled[1] == input_size[1], op,
        ": indices of size ", Shape{pooled}, " do not belong to an input of size ", Shape{input_size});
  check(given == pooled, op, ": grad_output of size ", Shape{given}, " must have the indices' size ",
        Shape{pooled});
  check(indices.scalar_type() == ScalarType::Long, op, ": indices have dtype ",
        dtype_name(indices.scalar_type()), ", must be int64");
  check_same_device(op.c_str(), "grad_output", grad_output, "indices", indices);
  Params p = problem(op, input_size, Ints(pooled.begin() + 2, pooled.end()));
  p.dtype = float_dtype(op.c_str(), "grad_output", grad_output);
  p.record = Argmax::index64;
  const bool last = channels_last && input_size.size() > 3;
  Tensor grad_input = empty(grad_output, input_size, last ? Layout::channels_last : Layout::contiguous);
  p.input = strides_of(grad_input);
  p.output = strides_of(grad_output);
  p.argmax = strides_of(indices);
  p.device = device_of(grad_output);
  if (p.n > 0)
    choose("adaptive_max_pool_backward", spread_kernels(), p)
        .run(p, grad_output.data_ptr(), indices.data_ptr(), grad_input.data_ptr());
  return grad_input;
}

STABLE_TORCH_LIBRARY_FRAGMENT(convnorm, m) {
  m.def(
      "adaptive_max_pool_forward(Tensor input, SymInt[] output_size, bool return_indices) -> (Tensor output, "
      "Tensor indices)");
  m.def(
      "adaptive_max_pool_backward(Tensor grad_output, Tensor indices, SymInt[] input_size, bool "
      "channels_last) -> Tensor");
}

CONVNORM_LIBRARY_IMPL(m) {
  m.impl("adaptive_max_pool_forward", TORCH_BOX(&forward));
  m.impl("adaptive_max_pool_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace convnorm::max_pool
