// The ordered lists of convolution kernels: first that accepts wins.
#include <algorithm>
#include <array>

#include "common/registry.h"
#include "ops/conv/conv.h"
#include "ops/conv/cuda/conv_depthwise_problem.h"

namespace convnorm::conv {
namespace {

// Implicit GEMM takes every problem: what differs per pass is which sub-problems it is made of.
template <const Igemm* kIgemm>
void run_igemm(const Params& p) {
  switch (p.pass) {
    case Pass::forward:
      kIgemm->gemm(forward_problem(p));
      break;
    case Pass::by_input:
      kIgemm->by_input(p);
      break;
    case Pass::by_weight:
      kIgemm->by_weight(forward_problem(p));
      break;
  }
}

// Weights that a kernel of dense problems lays out for itself, forward only.
template <const auto* kKernels, Dense (*kProblem)(const Params&) = forward_problem>
constexpr WeightPacking<Params> kDensePacking = {
    [](const Params& p) { return kKernels->packing.bytes(kProblem(p)); },
    [](const Params& p, void* out) { kKernels->packing.pack(kProblem(p), out); }};

// Runs a kernel that takes all problems of a pass at once. By input, the phases of a row along w follow each
// other in their list.
template <class Run>
void run_together(const Params& p, Run run) {
  if (p.pass == Pass::forward) {
    const Dense d = forward_problem(p);
    return run(&d, 1, 1);
  }
  const std::vector<Dense> problems = by_input_problems(p);
  const std::int64_t phases = std::min(p.window.stride[kSpatial - 1], p.input.size[kSpatial - 1]);
  run(problems.data(), static_cast<std::int64_t>(problems.size()), phases);
}

template <const Winograd* kWinograd>
void run_winograd(const Params& p) {
  if (p.pass == Pass::by_weight) return kWinograd->by_weight(forward_problem(p));
  run_together(p, kWinograd->run);
}

template <const Winograd* kWinograd>
void run_folded(const Params& p) {
  kWinograd->folded(p);
}

template <const Depthwise* kDepthwise>
void run_depthwise(const Params& p) {
  if (p.pass == Pass::by_weight) return kDepthwise->by_weight(forward_problem(p));
  run_together(p, kDepthwise->run);
}

constexpr const char* kAboutDepthwise =
    "vectors of channels (channels_last) or of columns, 7 outputs in registers over all taps";
constexpr const char* kAboutGrouped =
    "few channels per group: 12 pixels of packed rows by a vector of filters in registers";
constexpr const char* kAboutGroupedWeight =
    "few channels per group: 4 filters x 3 taps in registers over the pixels of packed rows";
constexpr const char* kAboutCol2im =
    "few channels: products with all taps of a window at once, added up where the window lies";
constexpr const char* kAboutWinograd =
    "36 products per tile of outputs: 4x4 of 3x3 windows (in place of 144), 3x3 of 4x4, 2x2 of 5x5 (100); "
    "a strided window as windows of stride 1 over its phases";
constexpr const char* kAboutFolded =
    "a strided window over few channels as one of stride 1 over more of them, then Winograd";
constexpr const char* kAbout = "patches packed per block, register-tiled FMA; the im2col matrix never exists";
constexpr const char* kAboutTurned = "small images of planes, turned to channels_last and back";
constexpr const char* kReference =
    "patches as a matrix in memory, plain loops, double sums: the readable reference";

template <const Igemm* kIgemm>
void run_grouped(const Params& p) {
  if (p.pass == Pass::by_weight) return kIgemm->grouped_by_weight(forward_problem(p));
  if (p.pass == Pass::forward) return kIgemm->grouped(forward_problem(p));
  for (const Dense& d : by_input_problems(p)) kIgemm->grouped(d);
}

template <const Igemm* kIgemm>
void run_col2im(const Params& p) {
  kIgemm->col2im(p);
}

template <const Igemm* kIgemm>
void run_turned(const Params& p) {
  kIgemm->turned(p);
}

Dense turned_problem(const Params& p) { return forward_problem(channels_last_problem(p)); }

constexpr Kernel kTurnedRows[] = {
#if defined(__x86_64__)
    {"conv_igemm_turned_avx512", kAboutTurned, Isa::avx512, turned_refusal, run_turned<&igemm_avx512>,
     DeviceKind::cpu, nullptr, &kDensePacking<&igemm_avx512, turned_problem>},
    {"conv_igemm_turned_avx2", kAboutTurned, Isa::avx2, turned_refusal, run_turned<&igemm_avx2>,
     DeviceKind::cpu, nullptr, &kDensePacking<&igemm_avx2, turned_problem>},
#endif
    {"conv_igemm_turned_generic", kAboutTurned, Isa::generic, turned_refusal, run_turned<&igemm_generic>,
     DeviceKind::cpu, nullptr, &kDensePacking<&igemm_generic, turned_problem>},
};

constexpr Kernel kCol2imRows[] = {
#if defined(__x86_64__)
    {"conv_col2im_avx512", kAboutCol2im, Isa::avx512, col2im_refusal<64>, run_col2im<&igemm_avx512>},
    {"conv_col2im_avx2", kAboutCol2im, Isa::avx2, col2im_refusal<32>, run_col2im<&igemm_avx2>},
#endif
    {"conv_col2im_generic", kAboutCol2im, Isa::generic, col2im_refusal<16>, run_col2im<&igemm_generic>},
};

constexpr Kernel kGroupedRows[] = {
#if defined(__x86_64__)
    {"conv_grouped_avx512", kAboutGrouped, Isa::avx512, grouped_refusal<64>, run_grouped<&igemm_avx512>},
    {"conv_grouped_avx2", kAboutGrouped, Isa::avx2, grouped_refusal<32>, run_grouped<&igemm_avx2>},
#endif
    {"conv_grouped_generic", kAboutGrouped, Isa::generic, grouped_refusal<16>, run_grouped<&igemm_generic>},
};

constexpr Kernel kGroupedWeightRows[] = {
#if defined(__x86_64__)
    {"conv_grouped_avx512", kAboutGroupedWeight, Isa::avx512, grouped_weight_refusal<64>,
     run_grouped<&igemm_avx512>},
    {"conv_grouped_avx2", kAboutGroupedWeight, Isa::avx2, grouped_weight_refusal<32>,
     run_grouped<&igemm_avx2>},
#endif
    {"conv_grouped_generic", kAboutGroupedWeight, Isa::generic, grouped_weight_refusal<16>,
     run_grouped<&igemm_generic>},
};

constexpr Kernel kDepthwiseRows[] = {
#if defined(__x86_64__)
    {"conv_depthwise_avx512", kAboutDepthwise, Isa::avx512, depthwise_refusal,
     run_depthwise<&depthwise_avx512>},
    {"conv_depthwise_avx2", kAboutDepthwise, Isa::avx2, depthwise_refusal, run_depthwise<&depthwise_avx2>},
#endif
    {"conv_depthwise_generic", kAboutDepthwise, Isa::generic, depthwise_refusal,
     run_depthwise<&depthwise_generic>},
};

constexpr Kernel kWinogradRows[] = {
#if defined(__x86_64__)
    {"conv_winograd_avx512", kAboutWinograd, Isa::avx512, winograd_refusal, run_winograd<&winograd_avx512>,
     DeviceKind::cpu, nullptr, &kDensePacking<&winograd_avx512>},
    {"conv_winograd_avx2", kAboutWinograd, Isa::avx2, winograd_refusal, run_winograd<&winograd_avx2>,
     DeviceKind::cpu, nullptr, &kDensePacking<&winograd_avx2>},
#endif
    {"conv_winograd_generic", kAboutWinograd, Isa::generic, winograd_refusal, run_winograd<&winograd_generic>,
     DeviceKind::cpu, nullptr, &kDensePacking<&winograd_generic>},
};

constexpr Kernel kFoldedRows[] = {
#if defined(__x86_64__)
    {"conv_winograd_folded_avx512", kAboutFolded, Isa::avx512, winograd_folded_refusal,
     run_folded<&winograd_avx512>},
    {"conv_winograd_folded_avx2", kAboutFolded, Isa::avx2, winograd_folded_refusal,
     run_folded<&winograd_avx2>},
#endif
    {"conv_winograd_folded_generic", kAboutFolded, Isa::generic, winograd_folded_refusal,
     run_folded<&winograd_generic>},
};

template <void (*kReferenceRun)(const Params&)>
constexpr Kernel kAnyRows[] = {
#if defined(__x86_64__)
    {"conv_igemm_12x32_avx512", kAbout, Isa::avx512, nullptr, run_igemm<&igemm_avx512>, DeviceKind::cpu,
     nullptr, &kDensePacking<&igemm_avx512>},
    {"conv_igemm_6x16_avx2", kAbout, Isa::avx2, nullptr, run_igemm<&igemm_avx2>, DeviceKind::cpu, nullptr,
     &kDensePacking<&igemm_avx2>},
#endif
    {"conv_igemm_6x8_generic", kAbout, Isa::generic, nullptr, run_igemm<&igemm_generic>, DeviceKind::cpu,
     nullptr, &kDensePacking<&igemm_generic>},
    {"conv_im2col", kReference, Isa::generic, nullptr, kReferenceRun},
};

constexpr const char* kAboutCudaDirect = "few channels per group: one element of the result per thread";
constexpr const char* kAboutCudaTile = "tiles of 64 x 64 in 4 x 4 per thread, gathered into shared memory";
constexpr Kernel kCudaDirect = {"conv_direct_cuda", kAboutCudaDirect, Isa::generic,
                                direct_refusal,     direct_cuda,      DeviceKind::cuda};
constexpr const char* kAboutCudaChannels =
    "16 bytes of channels and 4 outputs of a row per thread; filters in shared memory";
constexpr const char* kAboutCudaRows = "4 outputs of a row per thread; filters in shared memory";
constexpr Kernel kCudaDepthwiseRows[] = {
    {"conv_depthwise_channels_cuda", kAboutCudaChannels, Isa::generic, depthwise_channels_refusal,
     depthwise_channels_cuda, DeviceKind::cuda},
    {"conv_depthwise_rows_cuda", kAboutCudaRows, Isa::generic, depthwise_rows_refusal, depthwise_rows_cuda,
     DeviceKind::cuda}};
constexpr Kernel kCudaDepthwiseWeightRows[] = {
    {"conv_depthwise_channels_cuda", kAboutCudaChannels, Isa::generic, depthwise_channels_refusal,
     depthwise_channels_weight_cuda, DeviceKind::cuda, depthwise_workspace<true>},
    {"conv_depthwise_rows_cuda", kAboutCudaRows, Isa::generic, depthwise_rows_refusal,
     depthwise_rows_weight_cuda, DeviceKind::cuda, depthwise_workspace<false>}};
constexpr Kernel kCudaRows[] = {
    kCudaDirect,
    {"conv_igemm_64x64_cuda", kAboutCudaTile, Isa::generic, cuda_refusal, igemm_cuda, DeviceKind::cuda}};
constexpr Kernel kCudaWeightRows[] = {kCudaDirect,
                                      {"conv_igemm_64x64_cuda", kAboutCudaTile, Isa::generic, cuda_refusal,
                                       igemm_weight_cuda, DeviceKind::cuda, weight_workspace}};

template <std::size_t... kRows>
constexpr auto join(const Kernel (&... lists)[kRows]) {
  std::array<Kernel, (kRows + ...)> all{};
  std::size_t n = 0;
  const auto append = [&](const auto& list) {
    for (const Kernel& row : list) all[n++] = row;
  };
  (append(lists), ...);
  return all;
}

constexpr auto kForward = join(kDepthwiseRows, kFoldedRows, kWinogradRows, kGroupedRows, kTurnedRows,
                               kAnyRows<im2col_forward>, kCudaDepthwiseRows, kCudaRows);
constexpr auto kByInput = join(kDepthwiseRows, kFoldedRows, kWinogradRows, kGroupedRows, kCol2imRows,
                               kTurnedRows, kAnyRows<im2col_by_input>, kCudaDepthwiseRows, kCudaRows);
constexpr auto kByWeight = join(kDepthwiseRows, kFoldedRows, kWinogradRows, kGroupedWeightRows,
                                kAnyRows<im2col_by_weight>, kCudaDepthwiseWeightRows, kCudaWeightRows);

}  // namespace

std::span<const Kernel> kernels(Pass pass) {
  switch (pass) {
    case Pass::by_input:
      return kByInput;
    case Pass::by_weight:
      return kByWeight;
    default:
      return kForward;
  }
}

static const Register<Kernel> forward_row("conv_forward", kernels(Pass::forward));
static const Register<Kernel> by_input_row("conv_by_input", kernels(Pass::by_input));
static const Register<Kernel> by_weight_row("conv_by_weight", kernels(Pass::by_weight));

}  // namespace convnorm::conv
