// Layer norm: schemas, checks, allocation and choice of kernel.
#include "ops/layer_norm/layer_norm.h"

#include "common/norm_operands.h"
#include "common/registry.h"
#include "common/tensor.h"
#include "ops/layer_norm/cuda/layer_norm_plan.h"

namespace convnorm {
namespace {

namespace ln = layer_norm;

#define CONVNORM_FORWARD(isa)                                                             \
  {"layer_norm_rows_" #isa, "a row stays in cache between its sweeps", Isa::isa, nullptr, \
   ln::kernels_##isa.forward},
#define CONVNORM_BACKWARD(isa)                                                                           \
  {"layer_norm_rows_" #isa, "groups of rows stay in L1 between their sweeps", Isa::isa, ln::refuse_long, \
   ln::kernels_##isa.backward_rows},                                                                     \
      {"layer_norm_columns_" #isa, "sums of long rows first, then tiles of columns", Isa::isa,           \
       ln::refuse_short, ln::kernels_##isa.backward_columns},

const char* const kReferenceAbout = "textbook loops in double";
const char* const kCudaAbout = "some threads per row, 16 bytes each; sums over rows merged in order";

std::span<const ln::Kernel<ln::Forward>> forward_kernels() {
  static const ln::Kernel<ln::Forward> rows[] = {
#if defined(__x86_64__)
      CONVNORM_FORWARD(avx512) CONVNORM_FORWARD(avx2)
#endif
          CONVNORM_FORWARD(generic){"layer_norm_reference", kReferenceAbout, Isa::generic, nullptr,
                                    ln::forward_reference},
      {"layer_norm_rows_cuda", kCudaAbout, Isa::generic, nullptr, ln::forward_cuda, DeviceKind::cuda}};
  return rows;
}

std::span<const ln::Kernel<ln::Backward>> backward_kernels() {
  static const ln::Kernel<ln::Backward> rows[] = {
#if defined(__x86_64__)
      CONVNORM_BACKWARD(avx512) CONVNORM_BACKWARD(avx2)
#endif
          CONVNORM_BACKWARD(generic){"layer_norm_reference", kReferenceAbout, Isa::generic, nullptr,
                                     ln::backward_reference},
      {"layer_norm_rows_cuda", kCudaAbout, Isa::generic, nullptr, ln::backward_cuda, DeviceKind::cuda,
       ln::backward_workspace}};
  return rows;
}

const Register<ln::Kernel<ln::Forward>> register_forward("layer_norm_forward", forward_kernels());
const Register<ln::Kernel<ln::Backward>> register_backward("layer_norm_backward", backward_kernels());

// The matrix that the input is.
struct Matrix {
  std::int64_t rows = 1, size = 1;
};

Matrix check_shape(const Tensor& input, const Ints& shape) {
  const auto sizes = sizes_of(input);
  check(!shape.empty(),
        "layer_norm: Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one "
        "element, but got normalized_shape = []");
  const bool fits =
      sizes.size() >= shape.size() && std::equal(shape.begin(), shape.end(), sizes.end() - shape.size());
  std::string expected = "[*";
  for (const std::int64_t s : shape) expected += ", " + std::to_string(s);
  check(fits, "layer_norm: Given normalized_shape=", list_text(shape), ", expected input with shape ",
        expected, "], but got input of size", list_text(sizes));
  Matrix m;
  for (std::size_t d = 0; d < sizes.size(); ++d)
    (d < sizes.size() - shape.size() ? m.rows : m.size) *= sizes[d];
  return m;
}

void check_param(const char* name, const OptTensor& t, const Tensor& input, const Ints& shape) {
  if (!t) return;
  check(sizes_of(*t) == shape, "layer_norm: Expected ", name,
        " to be of same shape as normalized_shape, but got ", name, " of shape ", list_text(sizes_of(*t)),
        " and normalized_shape = ", list_text(shape));
  check_param_dtype("layer_norm", name, *t, input);
}

std::tuple<Tensor, Tensor> layer_norm_forward(Tensor input, Ints normalized_shape, OptTensor weight,
                                              OptTensor bias, double eps) {
  const char* op = "layer_norm_forward";
  ln::Forward p;
  p.dtype = float_dtype("layer_norm", "input", input);
  const Matrix m = check_shape(input, normalized_shape);
  check_param("weight", weight, input, normalized_shape);
  check_param("bias", bias, input, normalized_shape);
  const Tensor x = as_contiguous(input);
  const ParamVector w(weight, input), b(bias, input);
  Tensor output = empty(input, sizes_of(input));
  Tensor stats = empty(input, {2, m.rows}, Layout::contiguous, ScalarType::Double);
  p.rows = m.rows, p.size = m.size;
  p.eps = eps;
  p.x = x.data_ptr();
  p.weight = w.data(), p.weight_dtype = w.dtype();
  p.bias = b.data(), p.bias_dtype = b.dtype();
  p.out = output.data_ptr();
  p.mean = view(stats).as<double>();
  p.var = p.mean + m.rows;
  p.device = device_of(input);
  if (m.size == 0) {
    torch::stable::zero_(stats);
    Tensor var = torch::stable::narrow(stats, 0, 1, 1);
    torch::stable::fill_(var, 1);
  }
  if (m.rows * m.size > 0) choose(op, forward_kernels(), p).run(p);
  return {output, stats};
}

// Where the sums over rows go: doubles on the CPU, the gradients themselves on CUDA.
void take_sums(ln::Backward& p, std::vector<double>& sums, const Tensor& grad_weight,
               const Tensor& grad_bias) {
  p.grad_weight_at = {grad_weight.data_ptr(), float_dtype("layer_norm", "weight", grad_weight)};
  p.grad_bias_at = {grad_bias.data_ptr(), float_dtype("layer_norm", "bias", grad_bias)};
  if (sums.empty()) return;
  p.grad_weight = sums.data();
  p.grad_bias = sums.data() + p.size;
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(Tensor grad_output, Tensor input,
                                                       Ints normalized_shape, OptTensor weight,
                                                       OptTensor bias, Tensor stats, double eps,
                                                       bool want_input, bool want_affine) {
  const char* op = "layer_norm_backward";
  ln::Backward p;
  p.dtype = float_dtype("layer_norm", "input", input);
  const Matrix m = check_shape(input, normalized_shape);
  check_param("weight", weight, input, normalized_shape);
  check_param("bias", bias, input, normalized_shape);
  check_like("layer_norm", "grad_output", grad_output, input);
  check_stats("layer_norm", stats, {2, m.rows});
  const Tensor x = as_contiguous(input), grad = as_contiguous(grad_output);
  const ParamVector w(weight, input);
  const Ints shape = want_affine ? normalized_shape : Ints{0};
  Tensor grad_input = empty(input, want_input ? sizes_of(input) : Ints{0});
  Tensor grad_weight = param_like(weight, input, shape), grad_bias = param_like(bias, input, shape);
  std::vector<double> sums(want_affine && !input.is_cuda() ? 2 * m.size : 0);
  p.rows = m.rows, p.size = m.size;
  p.eps = eps;
  p.grad_output = grad.data_ptr();
  p.x = x.data_ptr();
  p.weight = w.data(), p.weight_dtype = w.dtype();
  p.mean = view(stats).as<double>();
  p.var = p.mean + m.rows;
  p.device = device_of(input);
  p.grad_input = want_input ? grad_input.data_ptr() : nullptr;
  if (want_affine) take_sums(p, sums, grad_weight, grad_bias);
  const bool empty_input = m.rows * m.size == 0;
  if (!empty_input && (want_input || want_affine)) {
    const auto& row = choose(op, backward_kernels(), p);
    OptTensor work;
    if (row.workspace) work = workspace(p.device, row.workspace(p));
    if (work) p.workspace = work->data_ptr();
    row.run(p);
  }
  if (want_affine && input.is_cuda() && empty_input) {
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
  } else if (want_affine && !input.is_cuda()) {
    store(grad_weight, p.grad_weight);
    store(grad_bias, p.grad_bias);
  }
  return {grad_input, grad_weight, grad_bias};
}

STABLE_TORCH_LIBRARY_FRAGMENT(convnorm, m) {
  m.def(
      "layer_norm_forward(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps)"
      " -> (Tensor output, Tensor stats)");
  m.def(
      "layer_norm_backward(Tensor grad_output, Tensor input, SymInt[] normalized_shape, Tensor? weight,"
      " Tensor? bias, Tensor stats, float eps, bool want_input, bool want_affine)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
}

CONVNORM_LIBRARY_IMPL(m) {
  m.impl("layer_norm_forward", TORCH_BOX(&layer_norm_forward));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
}

}  // namespace
}  // namespace convnorm
