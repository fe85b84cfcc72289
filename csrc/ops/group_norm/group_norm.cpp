// Group norm and instance norm: schemas, checks, allocation and choice of kernel.
#include "ops/group_norm/group_norm.h"

#include "common/channel_vector.h"
#include "common/norm_operands.h"
#include "common/registry.h"
#include "common/tensor.h"
#include "ops/group_norm/cuda/group_norm_plan.h"

namespace convnorm {
namespace {

namespace gn = group_norm;

#define CONVNORM_ROWS(direction, isa)                                                                      \
  {"group_norm_planes_" #isa, "vectors along the image; a group stays in L2 between its sweeps", Isa::isa, \
   [](const auto& p) { return gn::refuse_rows(p); }, gn::kernels_##isa.direction##_planes},                \
      {"group_norm_rows_" #isa,                                                                            \
       "vectors over channels; slabs of whole groups, summed about the mean of each", Isa::isa,            \
       [](const auto& p) { return gn::refuse_planes(p); }, gn::kernels_##isa.direction##_rows},

const char* const kReferenceAbout = "textbook loops in double";

template <class Params>
gn::Kernel<Params> cuda_row(void (*run)(const Params&)) {
  return {"group_norm_passes_cuda",
          "batch norm's passes over the channels of every image, merged by group",
          Isa::generic,
          nullptr,
          run,
          DeviceKind::cuda,
          [](const Params& p) { return gn::workspace(p); }};
}

template <class Params>
void run(const char* op, std::span<const gn::Kernel<Params>> kernels, Params p) {
  const auto& row = choose(op, kernels, p);
  OptTensor work;
  if (row.workspace) work = workspace(p.device, row.workspace(p));
  if (work) p.workspace = work->data_ptr();
  row.run(p);
}

std::span<const gn::Kernel<gn::Forward>> forward_kernels() {
  static const gn::Kernel<gn::Forward> rows[] = {
#if defined(__x86_64__)
      CONVNORM_ROWS(forward, avx512) CONVNORM_ROWS(forward, avx2)
#endif
          CONVNORM_ROWS(forward, generic){"group_norm_reference", kReferenceAbout, Isa::generic, nullptr,
                                          gn::forward_reference},
      cuda_row(gn::forward_cuda)};
  return rows;
}

std::span<const gn::Kernel<gn::Backward>> backward_kernels() {
  static const gn::Kernel<gn::Backward> rows[] = {
#if defined(__x86_64__)
      CONVNORM_ROWS(backward, avx512) CONVNORM_ROWS(backward, avx2)
#endif
          CONVNORM_ROWS(backward, generic){"group_norm_reference", kReferenceAbout, Isa::generic, nullptr,
                                           gn::backward_reference},
      cuda_row(gn::backward_cuda)};
  return rows;
}

const Register<gn::Kernel<gn::Forward>> register_forward("group_norm_forward", forward_kernels());
const Register<gn::Kernel<gn::Backward>> register_backward("group_norm_backward", backward_kernels());

void check_param(const char* name, const OptTensor& t, const Tensor& input) {
  if (!t) return;
  check(t->dim() == 1 && t->size(0) == input.size(1), "group_norm: Expected ", name,
        " to be a vector of size equal to the number of channels in input, but got ", name, " of shape ",
        list_text(sizes_of(*t)), " and input of shape ", list_text(sizes_of(input)));
  check_param_dtype("group_norm", name, *t, input);
}

gn::Shape check_shape(const Tensor& input, std::int64_t groups, const OptTensor& weight,
                      const OptTensor& bias) {
  gn::Shape s;
  s.device = device_of(input);
  s.dtype = float_dtype("group_norm", "input", input);
  const Ints sizes = sizes_of(input);
  check(sizes.size() >= 2, "group_norm: Expected at least 2 dimensions for input tensor but received ",
        sizes.size());
  check(groups > 0, "group_norm: Expected num groups to be greater than 0, got ", groups);
  check(sizes[1] % groups == 0,
        "group_norm: Expected number of channels in input to be divisible by num_groups, but got input of "
        "shape ",
        list_text(sizes), " and num_groups=", groups);
  check_param("weight", weight, input);
  check_param("bias", bias, input);
  s.batch = sizes[0], s.channels = sizes[1], s.groups = groups;
  for (std::size_t d = 2; d < sizes.size(); ++d) s.inner *= sizes[d];
  s.rows = s.inner == 1 || (sizes.size() <= kMaxDims && suggested_layout(input) == Layout::channels_last);
  return s;
}

Layout layout_of(const gn::Shape& s, const Tensor& input) {
  return s.rows && input.dim() >= 4 && suggested_layout(input) == Layout::channels_last
             ? Layout::channels_last
             : Layout::contiguous;
}

// The tensor itself where it is dense in the layout, else a copy.
Tensor in_layout(const Tensor& t, Layout layout) {
  using torch::headeronly::MemoryFormat;
  if (layout == Layout::contiguous) return as_contiguous(t);
  if (t.is_cuda()) return operand(t, layout);
  return torch::stable::contiguous(t,
                                   t.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d);
}

std::tuple<Tensor, Tensor> group_norm_forward(Tensor input, std::int64_t num_groups, OptTensor weight,
                                              OptTensor bias, double eps) {
  const char* op = "group_norm_forward";
  gn::Forward p;
  static_cast<gn::Shape&>(p) = check_shape(input, num_groups, weight, bias);
  const Layout layout = layout_of(p, input);
  const Tensor x = in_layout(input, layout);
  const ChannelVector w(op, "weight", weight, input), b(op, "bias", bias, input);
  Tensor output = empty(input, sizes_of(input), layout);
  Tensor stats = empty(input, {2, p.batch, num_groups}, Layout::contiguous, ScalarType::Double);
  p.eps = eps;
  p.x = x.data_ptr();
  p.out = output.data_ptr();
  p.weight = w.data();
  p.bias = b.data();
  p.weight_at = w.ref();
  p.bias_at = b.ref();
  p.mean = view(stats).as<double>();
  p.var = p.mean + p.batch * num_groups;
  if (p.group_values() == 0) {
    torch::stable::zero_(stats);
    Tensor var = torch::stable::narrow(stats, 0, 1, 1);
    torch::stable::fill_(var, 1);
  }
  if (p.batch * p.group_values() > 0) run(op, forward_kernels(), p);
  return {output, stats};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_backward(Tensor grad_output, Tensor input,
                                                       std::int64_t num_groups, OptTensor weight,
                                                       OptTensor bias, Tensor stats, double eps,
                                                       bool want_input, bool want_affine) {
  const char* op = "group_norm_backward";
  gn::Backward p;
  static_cast<gn::Shape&>(p) = check_shape(input, num_groups, weight, bias);
  check_like("group_norm", "grad_output", grad_output, input);
  check_stats("group_norm", stats, {2, p.batch, num_groups});
  const Layout layout = layout_of(p, input);
  const Tensor x = in_layout(input, layout), grad = in_layout(grad_output, layout);
  const ChannelVector w(op, "weight", weight, input);
  ChannelVector grad_w(p.channels), grad_b(p.channels);
  const Ints shape{want_affine ? p.channels : 0};
  Tensor grad_input = want_input ? empty(input, sizes_of(input), layout) : empty(input, {0});
  Tensor grad_weight = param_like(weight, input, shape), grad_bias = param_like(bias, input, shape);
  p.eps = eps;
  p.grad_output = grad.data_ptr();
  p.x = x.data_ptr();
  p.weight = w.data();
  p.mean = view(stats).as<double>();
  p.var = p.mean + p.batch * num_groups;
  p.grad_input = want_input ? grad_input.data_ptr() : nullptr;
  p.weight_at = w.ref();
  if (want_affine) {
    p.grad_weight = grad_w.data();
    p.grad_bias = grad_b.data();
    p.grad_weight_at = channel_ref(grad_weight, float_dtype(op, "weight", grad_weight));
    p.grad_bias_at = channel_ref(grad_bias, float_dtype(op, "bias", grad_bias));
  }
  const bool some = p.batch * p.group_values() > 0;
  if (some && (want_input || want_affine)) run(op, backward_kernels(), p);
  if (want_affine && !input.is_cuda()) {
    grad_w.store(grad_weight);
    grad_b.store(grad_bias);
  } else if (want_affine && !some) {
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
  }
  return {grad_input, grad_weight, grad_bias};
}

STABLE_TORCH_LIBRARY_FRAGMENT(convnorm, m) {
  m.def(
      "group_norm_forward(Tensor input, SymInt num_groups, Tensor? weight, Tensor? bias, float eps)"
      " -> (Tensor output, Tensor stats)");
  m.def(
      "group_norm_backward(Tensor grad_output, Tensor input, SymInt num_groups, Tensor? weight, Tensor? bias,"
      " Tensor stats, float eps, bool want_input, bool want_affine)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
}

CONVNORM_LIBRARY_IMPL(m) {
  m.impl("group_norm_forward", TORCH_BOX(&group_norm_forward));
  m.impl("group_norm_backward", TORCH_BOX(&group_norm_backward));
}

}  // namespace
}  // namespace convnorm
