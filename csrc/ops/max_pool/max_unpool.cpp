// Host side of max un-pooling: schemas, checks, allocation, choice of kernel.
#include <string>

#include "common/pool_window.h"
#include "common/registry.h"
#include "common/tensor.h"
#include "ops/max_pool/adaptive_max_pool.h"

namespace convnorm::max_pool {
namespace {

// The plane has the sizes `unpooled`, the values and indices those of `indices`.
Params problem(const std::string& op, const Tensor& indices, const Ints& unpooled) {
  const Ints pooled = sizes_of(indices);
  const int dims = static_cast<int>(pooled.size()) - 2;
  check(indices.scalar_type() == ScalarType::Long, op,
        ": elements in indices should be type int64 but got: ", dtype_name(indices.scalar_type()));
  check_not_empty(op, pooled);
  Params p;
  p.record = Argmax::index64;
  p.device = device_of(indices);
  p.n = pooled[0];
  p.c = pooled[1];
  p.out = lift(pooled.data() + 2, dims, 1);
  p.in = lifted(op, "output_size", unpooled, dims, 1);
  p.argmax = strides_of(indices);
  return p;
}

Tensor forward(Tensor input, Tensor indices, Ints output_size) {
  const Ints sizes = sizes_of(input), given = sizes_of(indices);
  const std::string op = pool_name("max_unpool", sizes);
  check(given == sizes, op, ": indices of size ", Shape{given}, " must have the input's size ", Shape{sizes});
  check_same_device(op.c_str(), "input", input, "indices", indices);
  Params p = problem(op, indices, output_size);
  p.dtype = float_dtype(op.c_str(), "input", input);
  Ints unpooled{p.n, p.c};
  unpooled.insert(unpooled.end(), output_size.begin(), output_size.end());
  for (const std::int64_t size : unpooled)
    check_value(size >= 0, op, ": output_size ", Shape{output_size}, " must be non-negative");
  Tensor output = empty(input, unpooled, suggested_layout(input));
  p.input = strides_of(output);
  p.output = strides_of(input);
  if (p.n == 0) return output;
  const BadIndex bad = choose("max_unpool_forward", place_kernels(), p)
                           .run(p, input.data_ptr(), indices.data_ptr(), output.data_ptr());
  check(!bad.found, op, ": found an invalid max index ", bad.index, " in indices; with output_size ",
        Shape{output_size}, " it must be in [0, ", plane(p), ")");
  return output;
}

Tensor backward(Tensor grad_output, Tensor indices) {
  const Ints sizes = sizes_of(grad_output), pooled = sizes_of(indices);
  const std::string op = pool_name("max_unpool", sizes) + "_backward";
  check(pooled.size() == sizes.size() && pooled[0] == sizes[0] && pooled[1] == sizes[1], op,
        ": indices of size ", Shape{pooled}, " do not belong to grad_output of size ", Shape{sizes});
  check_same_device(op.c_str(), "grad_output", grad_output, "indices", indices);
  Params p = problem(op, indices, Ints(sizes.begin() + 2, sizes.end()));
  p.dtype = float_dtype(op.c_str(), "grad_output", grad_output);
  Tensor grad_input = empty(grad_output, pooled, suggested_layout(indices));
  p.input = strides_of(grad_output);
  p.output = strides_of(grad_input);
  if (p.n > 0)
    choose("max_unpool_backward", pick_kernels(), p)
        .run(p, grad_output.data_ptr(), indices.data_ptr(), grad_input.data_ptr());
  return grad_input;
}

STABLE_TORCH_LIBRARY_FRAGMENT(convnorm, m) {
  m.def("max_unpool_forward(Tensor input, Tensor indices, SymInt[] output_size) -> Tensor");
  m.def("max_unpool_backward(Tensor grad_output, Tensor indices) -> Tensor");
}

CONVNORM_LIBRARY_IMPL(m) {
  m.impl("max_unpool_forward", TORCH_BOX(&forward));
  m.impl("max_unpool_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace convnorm::max_pool
