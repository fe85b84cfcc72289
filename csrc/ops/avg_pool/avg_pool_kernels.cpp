// The ordered lists of average pooling's kernels, what each of them refuses, and the merging of dimensions.
#include "ops/avg_pool/avg_pool.h"

#include "common/registry.h"
#include "ops/avg_pool/cuda/avg_pool_problem.h"

namespace convnorm::avg_pool {
namespace {

template <int kBytes>
const char* refuse_channels(const Params& p) {
  if (p.input.c != 1 || p.output.c != 1) return "channels are not adjacent in input and output";
  return p.c < kBytes / (p.dtype == DType::f64 ? 8 : 4) ? "fewer channels than vector lanes" : nullptr;
}

// True when the only window of dimension d spans it, and nothing else.
bool spanned(const Params& p, int d) {
  if (p.out[d] != 1) return false;
  return p.adaptive || (p.window.pad[d] == 0 && p.window.kernel[d] == p.in[d]);
}

// Every tensor dense, with the planes one after the other.
template <int kBytes>
const char* refuse_runs(const Params& p) {
  const std::int64_t lanes = kBytes / (p.dtype == DType::f64 ? 8 : 4), n = p.in[2];
  if (p.in[0] * p.in[1] * p.out[0] * p.out[1] * p.out[2] != 1 || !spanned(p, 2))
    return "not one window per plane";
  if (p.input.s[2] != 1 || (p.c > 1 && p.input.c != n) || (p.n > 1 && p.input.n != p.c * n))
    return "planes do not follow each other in memory";
  if ((p.c > 1 && p.output.c != 1) || (p.n > 1 && p.output.n != p.c)) return "outputs are not adjacent";
  if (n < lanes || n > 32 * lanes) return "planes are not of 1 to 32 vectors";
  return p.n * p.c < lanes ? "fewer planes than vector lanes" : nullptr;
}

template <int kBytes>
const char* refuse_rows(const Params& p) {
  const Window& w = p.window;
  if (p.adaptive) return "windows are not evenly spaced";
  if (p.input.s[2] != 1 || p.output.s[2] != 1) return "columns are not adjacent in input and output";
  if (w.stride[2] > 2) return "the stride along the row is not 1 or 2";
  if (w.kernel[0] * w.kernel[1] * w.kernel[2] > 64) return "windows have more than 64 positions";
  const std::int64_t lanes = kBytes / (p.dtype == DType::f64 ? 8 : 4);
  if (whole_windows(p).size() < (w.stride[2] == 1 ? 8 : 1) * lanes)
    return w.stride[2] == 1 ? "rows of stride 1 are shorter than 8 vectors"
                            : "rows are shorter than a vector";
  return nullptr;
}

constexpr const char* kCudaChannels = "16 bytes of channels per thread";
constexpr const char* kCudaDirect = "one element per thread, any strides";
constexpr const char* kRuns = "planes as runs, one register each, added up by one transpose";
constexpr const char* kChannels = "vectors over channels, sums of the window in registers";
constexpr const char* kPlanes = "vectors over planes, turned into lanes while their rows are added";
constexpr const char* kRows = "vectors along the row, sums of rows first";
constexpr const char* kBackRows = "vectors along the row, gathers from the covering windows";
constexpr const char* kBackChannels = "vectors over channels, gathers from the covering windows";
constexpr const char* kBackPlanes = "vectors over planes, gathers from the covering windows";

const Register<Kernel> register_forward("avg_pool_forward", forward_kernels());
const Register<Kernel> register_backward("avg_pool_backward", backward_kernels());

}  // namespace

Params merged(const Params& p) {
  Params m = p;
  for (int d = 1; d >= 0; --d) {
    const std::int64_t run = m.in[2];
    const bool dense = m.in[d] == 1 || m.input.s[d] == run * m.input.s[2];
    if (!spanned(m, d) || !spanned(m, 2) || !dense) break;
    m.in[2] = run * m.in[d];
    m.window.kernel[2] = m.adaptive ? 1 : m.in[2];
    m.in[d] = m.window.kernel[d] = 1;
  }
  return m;
}

std::span<const Kernel> forward_kernels() {
  static const Kernel rows[] = {
#if defined(__x86_64__)
      {"avg_pool_runs_avx512", kRuns, Isa::avx512, refuse_runs<64>, kernels_avx512.forward_runs},
      {"avg_pool_channels_avx512", kChannels, Isa::avx512, refuse_channels<64>,
       kernels_avx512.forward_channels},
      {"avg_pool_rows_avx512", kRows, Isa::avx512, refuse_rows<64>, kernels_avx512.forward_rows},
      {"avg_pool_planes_avx512", kPlanes, Isa::avx512, nullptr, kernels_avx512.forward_planes},
      {"avg_pool_runs_avx2", kRuns, Isa::avx2, refuse_runs<32>, kernels_avx2.forward_runs},
      {"avg_pool_channels_avx2", kChannels, Isa::avx2, refuse_channels<32>, kernels_avx2.forward_channels},
      {"avg_pool_rows_avx2", kRows, Isa::avx2, refuse_rows<32>, kernels_avx2.forward_rows},
      {"avg_pool_planes_avx2", kPlanes, Isa::avx2, nullptr, kernels_avx2.forward_planes},
#endif
      {"avg_pool_runs_generic", kRuns, Isa::generic, refuse_runs<16>, kernels_generic.forward_runs},
      {"avg_pool_channels_generic", kChannels, Isa::generic, refuse_channels<16>,
       kernels_generic.forward_channels},
      {"avg_pool_rows_generic", kRows, Isa::generic, refuse_rows<16>, kernels_generic.forward_rows},
      {"avg_pool_planes_generic", kPlanes, Isa::generic, nullptr, kernels_generic.forward_planes},
      {"avg_pool_direct", "plain loops", Isa::generic, nullptr, forward_direct},
      {"avg_pool_channels_cuda", kCudaChannels, Isa::generic, refuse_channels_cuda, forward_channels_cuda,
       DeviceKind::cuda},
      {"avg_pool_direct_cuda", kCudaDirect, Isa::generic, refuse_cuda, forward_direct_cuda, DeviceKind::cuda},
  };
  return rows;
}

std::span<const Kernel> backward_kernels() {
  static const Kernel rows[] = {
#if defined(__x86_64__)
      {"avg_pool_backward_channels_avx512", kBackChannels, Isa::avx512, refuse_channels<64>,
       kernels_avx512.backward_channels},
      {"avg_pool_backward_rows_avx512", kBackRows, Isa::avx512, refuse_rows<64>,
       kernels_avx512.backward_rows},
      {"avg_pool_backward_planes_avx512", kBackPlanes, Isa::avx512, nullptr, kernels_avx512.backward_planes},
      {"avg_pool_backward_channels_avx2", kBackChannels, Isa::avx2, refuse_channels<32>,
       kernels_avx2.backward_channels},
      {"avg_pool_backward_rows_avx2", kBackRows, Isa::avx2, refuse_rows<32>, kernels_avx2.backward_rows},
      {"avg_pool_backward_planes_avx2", kBackPlanes, Isa::avx2, nullptr, kernels_avx2.backward_planes},
#endif
      {"avg_pool_backward_channels_generic", kBackChannels, Isa::generic, refuse_channels<16>,
       kernels_generic.backward_channels},
      {"avg_pool_backward_rows_generic", kBackRows, Isa::generic, refuse_rows<16>,
       kernels_generic.backward_rows},
      {"avg_pool_backward_planes_generic", kBackPlanes, Isa::generic, nullptr,
       kernels_generic.backward_planes},
      {"avg_pool_backward_direct", "plain loops", Isa::generic, nullptr, backward_direct},
      {"avg_pool_backward_channels_cuda", kCudaChannels, Isa::generic, refuse_channels_cuda,
       backward_channels_cuda, DeviceKind::cuda},
      {"avg_pool_backward_direct_cuda", kCudaDirect, Isa::generic, refuse_cuda, backward_direct_cuda,
       DeviceKind::cuda},
  };
  return rows;
}

}  // namespace convnorm::avg_pool
