// Host side of average pooling, plain and adaptive: schemas, checks, allocation, choice of kernel.
#include "ops/avg_pool/avg_pool.h"

#include <string>

#include "common/pool_window.h"
#include "common/registry.h"
#include "common/tensor.h"

namespace convnorm::avg_pool {
namespace {

// --- problems without their tensors; sizes are (n, c, spatial...) -----------------------------------------

Params problem(const Ints& sizes) {
  Params p;
  p.n = sizes[0];
  p.c = sizes[1];
  p.in = lift(sizes.data() + 2, static_cast<int>(sizes.size()) - 2, 1);
  return p;
}

struct Geometry {
  Ints window;
  bool ceil_mode, include_pad;
  std::optional<std::int64_t> divisor;
};

Params plain(const std::string& op, const Ints& sizes, const Geometry& g) {
  const int dims = static_cast<int>(sizes.size()) - 2;
  Params p = problem(sizes);
  const Window& w = p.window = pool_window(op, g.window, dims, Dilated::no);
  check(g.divisor != 0, op, ": divisor_override 0 must not be zero");
  check_not_empty(op, sizes);
  p.include_pad = g.include_pad;
  p.divisor = g.divisor.value_or(0);
  for (int d = kSpatial - dims; d < kSpatial; ++d) {
    p.out[d] = pooled_size(w, d, p.in[d], g.ceil_mode);
    check_pooled_size(op, w, d, p.in[d], p.out[d]);
    check(dims < 3 || p.in[d] >= w.kernel[d], op, ": input ", dim_name(d), " ", p.in[d],
          " is smaller than kernel_size ", w.kernel[d], ", which avg_pool3d does not take even when padded");
  }
  return p;
}

Params adaptive(const std::string& op, const Ints& sizes, const Ints& output_size) {
  const int dims = static_cast<int>(sizes.size()) - 2;
  Params p = problem(sizes);
  p.adaptive = true;
  p.out = lifted(op, "output_size", output_size, dims, 1);
  for (int d = kSpatial - dims; d < kSpatial; ++d)
    check(p.out[d] >= 0, op, ": output_size ", p.out[d], " (", dim_name(d),
          ") must be greater than or equal to 0");
  check_not_empty(op, sizes, dims < 3 ? 2 : 1);
  return p;
}

Ints pooled_sizes(const Params& p, const Ints& sizes) {
  Ints pooled{p.n, p.c};
  for (std::size_t d = kSpatial - (sizes.size() - 2); d < kSpatial; ++d) pooled.push_back(p.out[d]);
  return pooled;
}

// --- running them -----------------------------------------------------------------------------------------

Tensor pool(const std::string& op, Params p, const Tensor& input) {
  const Ints sizes = sizes_of(input);
  p.dtype = float_dtype(op.c_str(), "input", input);
  Tensor output = empty(input, pooled_sizes(p, sizes), suggested_layout(input));
  p.input = strides_of(input);
  p.output = strides_of(output);
  p.device = device_of(input);
  p.aligned = aligned(input) && aligned(output);
  p = merged(p);
  if (output.numel() > 0)
    choose("avg_pool_forward", forward_kernels(), p).run(p, input.data_ptr(), output.data_ptr());
  return output;
}

Tensor spread(const std::string& op, Params p, const Tensor& grad_output, const Ints& sizes,
              bool channels_last) {
  const Ints pooled = pooled_sizes(p, sizes), given = sizes_of(grad_output);
  check(given == pooled, op, ": grad_output of size ", Shape{given}, ", must be ", Shape{pooled});
  p.dtype = float_dtype(op.c_str(), "grad_output", grad_output);
  const bool last = channels_last && sizes.size() > 3;
  Tensor grad_input = empty(grad_output, sizes, last ? Layout::channels_last : Layout::contiguous);
  p.input = strides_of(grad_input);
  p.output = strides_of(grad_output);
  p.device = device_of(grad_output);
  p.aligned = aligned(grad_output) && aligned(grad_input);
  p = merged(p);
  if (grad_input.numel() > 0)
    choose("avg_pool_backward", backward_kernels(), p).run(p, grad_output.data_ptr(), grad_input.data_ptr());
  return grad_input;
}

// --- the ops ----------------------------------------------------------------------------------------------

Tensor forward(Tensor input, Ints window, bool ceil_mode, bool count_include_pad,
               std::optional<std::int64_t> divisor_override) {
  const Ints sizes = sizes_of(input);
  const std::string op = pool_name("avg_pool", sizes);
  return pool(op, plain(op, sizes, {window, ceil_mode, count_include_pad, divisor_override}), input);
}

Tensor backward(Tensor grad_output, Ints input_size, Ints window, bool ceil_mode, bool count_include_pad,
                std::optional<std::int64_t> divisor_override, bool channels_last) {
  const std::string op = pool_name("avg_pool", input_size) + "_backward";
  const Geometry g{window, ceil_mode, count_include_pad, divisor_override};
  return spread(op, plain(op, input_size, g), grad_output, input_size, channels_last);
}

Tensor adaptive_forward(Tensor input, Ints output_size) {
  const Ints sizes = sizes_of(input);
  const std::string op = pool_name("adaptive_avg_pool", sizes);
  return pool(op, adaptive(op, sizes, output_size), input);
}

Tensor adaptive_backward(Tensor grad_output, Ints input_size, bool channels_last) {
  const std::string op = pool_name("adaptive_avg_pool", input_size) + "_backward";
  const Ints pooled = sizes_of(grad_output);
  check(pooled.size() == input_size.size(), op, ": grad_output of size ", Shape{pooled},
        " does not belong to an input of size ", Shape{input_size});
  const Params p = adaptive(op, input_size, Ints(pooled.begin() + 2, pooled.end()));
  return spread(op, p, grad_output, input_size, channels_last);
}

STABLE_TORCH_LIBRARY_FRAGMENT(convnorm, m) {
  m.def(
      "avg_pool_forward(Tensor input, SymInt[] window, bool ceil_mode, bool count_include_pad, "
      "int? divisor_override) -> Tensor");
  m.def(
      "avg_pool_backward(Tensor grad_output, SymInt[] input_size, SymInt[] window, bool ceil_mode, "
      "bool count_include_pad, int? divisor_override, bool channels_last) -> Tensor");
  m.def("adaptive_avg_pool_forward(Tensor input, SymInt[] output_size) -> Tensor");
  m.def("adaptive_avg_pool_backward(Tensor grad_output, SymInt[] input_size, bool channels_last) -> Tensor");
}

CONVNORM_LIBRARY_IMPL(m) {
  m.impl("avg_pool_forward", TORCH_BOX(&forward));
  m.impl("avg_pool_backward", TORCH_BOX(&backward));
  m.impl("adaptive_avg_pool_forward", TORCH_BOX(&adaptive_forward));
  m.impl("adaptive_avg_pool_backward", TORCH_BOX(&adaptive_backward));
}

}  // namespace
}  // namespace convnorm::avg_pool
