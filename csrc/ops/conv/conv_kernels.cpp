// The ordered lists of convolution kernels: first that accepts wins.
#include <algorithm>
#include <array>

#include "common/registry.h"
#include "ops/conv/conv.h"
#include "ops/conv/conv_about.h"
#include "ops/conv/cuda/conv_depthwise_problem.h"
#include "ops/conv/cuda/conv_problem.h"

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

template <const Tiles* kTiles>
void run_tiles(const Params& p) {
  if (p.pass == Pass::by_input) return kTiles->by_input(p);
  if (p.pass == Pass::by_weight) return kTiles->by_weight(forward_problem(p));
  kTiles->run(forward_problem(p));
}

#if defined(__x86_64__)
constexpr std::array<Kernel, 2> kTilesRows = {
    {{"conv_tiles_32x32_amx", kAboutTiles, Isa::amx, tiles_refusal, run_tiles<&tiles_amx>, DeviceKind::cpu,
      nullptr, &kDensePacking<&tiles_amx>},
     {"conv_tiles_8x32_avx512bf16", kAboutPairs, Isa::avx512bf16, tiles_refusal, run_tiles<&tiles_avx512bf16>,
      DeviceKind::cpu, nullptr, &kDensePacking<&tiles_avx512bf16>}}};
#else
constexpr std::array<Kernel, 0> kTilesRows;
#endif

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

constexpr Kernel kCudaDirect = {"conv_direct_cuda", kAboutCudaDirect, Isa::generic,
                                direct_refusal,     direct_cuda,      DeviceKind::cuda};
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

template <class List>
inline constexpr std::size_t kRowsOf = std::extent_v<List>;
template <std::size_t kRows>
inline constexpr std::size_t kRowsOf<std::array<Kernel, kRows>> = kRows;

template <class... Lists>
constexpr auto join(const Lists&... lists) {
  std::array<Kernel, (kRowsOf<Lists> + ...)> all{};
  std::size_t n = 0;
  const auto append = [&](const auto& list) {
    for (const Kernel& row : list) all[n++] = row;
  };
  (append(lists), ...);
  return all;
}

constexpr auto kForward = join(kDepthwiseRows, kTilesRows, kFoldedRows, kWinogradRows, kGroupedRows,
                               kTurnedRows, kAnyRows<im2col_forward>, kCudaDepthwiseRows, kCudaRows);
constexpr auto kByInput =
    join(kDepthwiseRows, kTilesRows, kFoldedRows, kWinogradRows, kGroupedRows, kCol2imRows, kTurnedRows,
         kAnyRows<im2col_by_input>, kCudaDepthwiseRows, kCudaRows);
constexpr auto kByWeight = join(kDepthwiseRows, kTilesRows, kFoldedRows, kWinogradRows, kGroupedWeightRows,
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
