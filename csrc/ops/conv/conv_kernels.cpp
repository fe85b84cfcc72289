// The ordered lists of convolution kernels: first that accepts wins.
#include "common/registry.h"
#include "ops/conv/conv.h"

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
      for (const Dense& d : by_input_problems(p)) kIgemm->gemm(d);
      break;
    case Pass::by_weight:
      kIgemm->by_weight(forward_problem(p));
      break;
  }
}

// A stride of 1 makes by input one dense problem, as forward is.
template <const Winograd* kWinograd>
void run_winograd(const Params& p) {
  kWinograd->run(p.pass == Pass::forward ? forward_problem(p) : by_input_problems(p).front());
}

constexpr const char* kAboutWinograd =
    "36 products per 4x4 tile of outputs in place of 144, for 3x3 windows at stride 1";
constexpr const char* kAbout = "patches packed per block, register-tiled FMA; the im2col matrix never exists";
constexpr const char* kReference =
    "patches as a matrix in memory, plain loops, double sums: the readable reference";

template <void (*kReferenceRun)(const Params&)>
constexpr Kernel kList[] = {
#if defined(__x86_64__)
    {"conv_winograd_f4x4_avx512", kAboutWinograd, Isa::avx512, winograd_refusal,
     run_winograd<&winograd_avx512>},
    {"conv_winograd_f4x4_avx2", kAboutWinograd, Isa::avx2, winograd_refusal, run_winograd<&winograd_avx2>},
#endif
    {"conv_winograd_f4x4_generic", kAboutWinograd, Isa::generic, winograd_refusal,
     run_winograd<&winograd_generic>},
#if defined(__x86_64__)
    {"conv_igemm_12x32_avx512", kAbout, Isa::avx512, nullptr, run_igemm<&igemm_avx512>},
    {"conv_igemm_6x16_avx2", kAbout, Isa::avx2, nullptr, run_igemm<&igemm_avx2>},
#endif
    {"conv_igemm_6x8_generic", kAbout, Isa::generic, nullptr, run_igemm<&igemm_generic>},
    {"conv_im2col", kReference, Isa::generic, nullptr, kReferenceRun},
};

#if defined(__x86_64__)
constexpr std::size_t kWinogradRows = 3;  // which by_weight leaves out
#else
constexpr std::size_t kWinogradRows = 1;
#endif

}  // namespace

std::span<const Kernel> kernels(Pass pass) {
  switch (pass) {
    case Pass::by_input:
      return kList<im2col_by_input>;
    case Pass::by_weight:
      return std::span<const Kernel>(kList<im2col_by_weight>).subspan(kWinogradRows);
    default:
      return kList<im2col_forward>;
  }
}

static const Register<Kernel> forward_row("conv_forward", kernels(Pass::forward));
static const Register<Kernel> by_input_row("conv_by_input", kernels(Pass::by_input));
static const Register<Kernel> by_weight_row("conv_by_weight", kernels(Pass::by_weight));

}  // namespace convnorm::conv
