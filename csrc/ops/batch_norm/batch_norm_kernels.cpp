// The ordered lists of batch norm's kernels.
#include "ops/batch_norm/batch_norm.h"

#include "common/registry.h"
#include "ops/batch_norm/cuda/batch_norm_plan.h"

namespace convnorm::batch_norm {
namespace {

#define CONVNORM_ROWS(direction, isa)                                                                        \
  {"batch_norm_planes_" #isa, "vectors along the image; a channel stays in L2 between its sweeps", Isa::isa, \
   [](const auto& p) { return refuse_rows(p.rows); }, kernels_##isa.direction##_planes},                     \
  {                                                                                                          \
    "batch_norm_rows_" #isa, "vectors over channels; tiles of rows merged in order", Isa::isa,               \
        [](const auto& p) { return refuse_planes(p.rows); }, kernels_##isa.direction##_rows                  \
  }
#if defined(__x86_64__)
#define CONVNORM_WIDE_ROWS(direction) CONVNORM_ROWS(direction, avx512), CONVNORM_ROWS(direction, avx2),
#else
#define CONVNORM_WIDE_ROWS(direction)
#endif

template <class Params>
Kernel<Params> cuda_rows(void (*run)(const Params&)) {
  return {"batch_norm_rows_cuda",
          "16 bytes of channels per thread; blocks of rows merged in order",
          Isa::generic,
          [](const Params& p) { return refuse_planes(p.rows); },
          run,
          DeviceKind::cuda,
          [](const Params& p) { return rows_plan(p).bytes(); }};
}

template <class Params>
Kernel<Params> cuda_planes(void (*run)(const Params&)) {
  return {"batch_norm_planes_cuda",
          "16 bytes of the image per thread; pieces of a channel merged in order",
          Isa::generic,
          [](const Params& p) { return refuse_rows(p.rows); },
          run,
          DeviceKind::cuda,
          [](const Params& p) { return planes_plan(p).bytes(); }};
}

const char* const kReferenceAbout = "textbook loops in double, any strides";

}  // namespace

std::span<const Kernel<Forward>> forward_kernels() {
  static const Kernel<Forward> rows[] = {
      CONVNORM_WIDE_ROWS(forward) CONVNORM_ROWS(forward, generic),
      {"batch_norm_reference", kReferenceAbout, Isa::generic, nullptr, forward_reference},
      {"batch_norm_resident_cuda", "as by rows, in one kernel that reads x once: it stays in shared memory",
       Isa::generic, resident_refusal_cuda, forward_resident_cuda, DeviceKind::cuda,
       [](const Forward& p) { return rows_plan(p).bytes(); }},
      cuda_rows(forward_rows_cuda),
      cuda_planes(forward_planes_cuda)};
  return rows;
}

std::span<const Kernel<Backward>> backward_kernels() {
  static const Kernel<Backward> rows[] = {
      CONVNORM_WIDE_ROWS(backward) CONVNORM_ROWS(backward, generic),
      {"batch_norm_reference", kReferenceAbout, Isa::generic, nullptr, backward_reference},
      cuda_rows(backward_rows_cuda),
      cuda_planes(backward_planes_cuda)};
  return rows;
}

namespace {

const Register<Kernel<Forward>> register_train("batch_norm_train", forward_kernels());
const Register<Kernel<Forward>> register_eval("batch_norm_eval", forward_kernels());
const Register<Kernel<Backward>> register_backward("batch_norm_backward", backward_kernels());

}  // namespace
}  // namespace convnorm::batch_norm
