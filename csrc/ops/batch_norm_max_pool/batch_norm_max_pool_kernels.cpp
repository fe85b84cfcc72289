// The ordered lists of the kernels that normalise and pool.
#include "ops/batch_norm_max_pool/batch_norm_max_pool.h"

#include "common/registry.h"

namespace convnorm::batch_norm_max_pool {
namespace {

#define CONVNORM_ROWS(direction, isa)                                                                      \
  {"batch_norm_max_pool_planes_" #isa, "some planes at a time, normalised in cache and pooled from there", \
   Isa::isa, [](const auto& p) { return batch_norm::refuse_rows(p.norm.rows); },                           \
   [](const auto& p) { direction##_planes(p, batch_norm::kernels_##isa); }},                               \
  {                                                                                                        \
    "batch_norm_max_pool_rows_" #isa,                                                                      \
        "some rows of pixels at a time, normalised in cache and pooled from there", Isa::isa,              \
        [](const auto& p) { return batch_norm::refuse_planes(p.norm.rows); },                              \
        [](const auto& p) { direction##_rows(p, batch_norm::kernels_##isa); }                              \
  }
#if defined(__x86_64__)
#define CONVNORM_WIDE_ROWS(direction) CONVNORM_ROWS(direction, avx512), CONVNORM_ROWS(direction, avx2),
#else
#define CONVNORM_WIDE_ROWS(direction)
#endif

}  // namespace

std::span<const KernelRow<Forward>> forward_kernels() {
  static const KernelRow<Forward> rows[] = {CONVNORM_WIDE_ROWS(forward) CONVNORM_ROWS(forward, generic)};
  return rows;
}

std::span<const KernelRow<Backward>> backward_kernels() {
  static const KernelRow<Backward> rows[] = {CONVNORM_WIDE_ROWS(backward) CONVNORM_ROWS(backward, generic)};
  return rows;
}

namespace {

const Register<KernelRow<Forward>> register_train("batch_norm_max_pool_train", forward_kernels());
const Register<KernelRow<Forward>> register_eval("batch_norm_max_pool_eval", forward_kernels());
const Register<KernelRow<Backward>> register_backward("batch_norm_max_pool_backward", backward_kernels());

}  // namespace
}  // namespace convnorm::batch_norm_max_pool
