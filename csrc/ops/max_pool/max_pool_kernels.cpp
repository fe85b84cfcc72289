// The ordered lists of max pooling's kernels, and what each of them refuses.
#include "ops/max_pool/max_pool.h"

#include "common/registry.h"
#include "ops/max_pool/cuda/max_pool_rows.h"

namespace convnorm::max_pool {
namespace {

constexpr std::int64_t kMost32 = std::numeric_limits<std::int32_t>::max();

// Codes are kept in lanes as wide as the values, hence in 32 bits for all but double.
const char* refuse_all_vectors(const Params& p) {
  if (some_window_is_empty(p)) return "a window lies in the padding altogether";
  if (plane(p) > kMost32 || positions(p.window) > kMost32) return "positions need more than 31 bits";
  return nullptr;
}

const char* refuse_rows(const Params& p) {
  if (p.window.kernel[2] > 4096) return "windows are more than 4096 wide: the packed row leaves the cache";
  if (reach(p.window, 1) * p.window.kernel[0] > 16384) return "windows are more than 16384 rows high";
  return refuse_all_vectors(p);
}

template <int kBytes>
const char* too_few_channels(const Params& p) {
  return p.c < kBytes / (p.dtype == DType::f64 ? 8 : 4) ? "fewer channels than vector lanes" : nullptr;
}

template <int kBytes>
const char* refuse_channels(const Params& p) {
  if (p.input.c != 1 || p.output.c != 1) return "channels are not adjacent in input and output";
  if (positions(p.window) > 65536) return "windows have more than 65536 positions";
  if (const char* reason = too_few_channels<kBytes>(p)) return reason;
  return refuse_all_vectors(p);
}

// Windows that cover one input position, at most.
std::int64_t covers(const Params& p) {
  std::int64_t n = 1;
  for (int d = 0; d < kSpatial; ++d) n *= (p.window.kernel[d] + p.window.stride[d] - 1) / p.window.stride[d];
  return n;
}

// n, c, d, h, w of `size` follow each other without gaps. The stride of a dimension of size one is not used.
bool dense(const Params& p, const Strides& s, const Dims& size) {
  std::int64_t expected = 1;
  const auto fits = [&](std::int64_t n, std::int64_t stride) {
    const bool as_expected = n == 1 || stride == expected;
    expected *= n;
    return as_expected;
  };
  return fits(size[2], s.s[2]) && fits(size[1], s.s[1]) && fits(size[0], s.s[0]) && fits(p.c, s.c) &&
         fits(p.n, s.n);
}

const char* refuse_planes(const Params& p, const Strides& strides) {
  const Window& w = p.window;
  for (int d = 0; d < kSpatial; ++d)
    if (p.out[d] != 1 || w.pad[d] != 0 || reach(w, d) != p.in[d] || w.kernel[d] != p.in[d])
      return "the window is not the whole image";
  Params one = p;  // n and c may lie anywhere
  one.n = one.c = 1;
  if (!dense(one, strides, p.in)) return "planes are not dense";
  return refuse_all_vectors(p);
}

const char* refuse_forward_planes(const Params& p) { return refuse_planes(p, p.input); }

const char* refuse_backward_planes(const Params& p) {
  return dense(p, p.input, p.in) ? refuse_planes(p, p.input) : "planes of grad_input are not dense";
}

const char* refuse_pairs(const Params& p) {
  const Window& w = p.window;
  if (w.kernel[2] != 2 || w.stride[2] != 2 || w.dil[2] != 1) return "windows are not pairs of columns";
  for (int d = 0; d < kSpatial; ++d)
    if (w.pad[d] != 0 || (p.out[d] - 1) * w.stride[d] + reach(w, d) > p.in[d])
      return "some window reaches beyond the image";
  return nullptr;
}

const char* refuse_forward_pairs(const Params& p) {
  if (p.record != Argmax::none && p.record != Argmax::offset8) return "what is recorded is not a byte";
  if (p.input.s[2] != 1) return "columns of input are not adjacent";
  if (!dense(p, p.output, p.out) || (p.record != Argmax::none && !dense(p, p.argmax, p.out)))
    return "planes are not dense";
  if (const char* reason = refuse_pairs(p)) return reason;
  return refuse_all_vectors(p);
}

// What every backward along rows needs.
const char* refuse_backward_vectors(const Params& p) {
  if (p.record != Argmax::offset8) return "what is recorded is not a byte";
  if (p.out[2] > 1 && p.output.s[2] != 1) return "columns of grad_output are not adjacent";
  if (!dense(p, p.input, p.in) || !dense(p, p.argmax, p.out)) return "planes are not dense";
  return refuse_all_vectors(p);
}

// Windows lie beside each other, and none reaches beyond the image.
bool tiles(const Params& p, int d) {
  const Window& w = p.window;
  return w.pad[d] == 0 && w.stride[d] == w.kernel[d] && reach(w, d) == w.kernel[d] &&
         p.out[d] * w.kernel[d] <= p.in[d];
}

const char* refuse_backward_pairs(const Params& p) {
  if (const char* reason = refuse_pairs(p)) return reason;
  if (!tiles(p, 0) || !tiles(p, 1)) return "windows do not tile the image";
  return refuse_backward_vectors(p);
}

const char* refuse_backward_rows(const Params& p) {
  const Window& w = p.window;
  if (w.stride[2] != 1 && (w.stride[2] != 2 || w.dil[2] % 2 == 0))
    return "columns of a stride other than 1, or 2 with odd dilation";
  if (positions(w) > 9) return "windows have more than 9 positions: scattering is less work";
  return refuse_backward_vectors(p);
}

const char* refuse_backward_tiles(const Params& p) {
  if (!tiles(p, 0) || !tiles(p, 1) || !tiles(p, 2)) return "windows do not tile the image";
  if (p.input.c != 1 || p.output.c != 1 || p.argmax.c != 1)
    return "channels are not adjacent in all three tensors";
  const std::int64_t row = p.in[2] * p.c;
  if (p.input.s[2] != p.c || (p.in[1] > 1 && p.input.s[1] != row))
    return "pixels of grad_input are not dense";
  if (p.c < 4) return "fewer than 4 channels: vectors would hold many pixels";
  return refuse_all_vectors(p);
}

template <int kBytes>
const char* refuse_backward_channels(const Params& p) {
  if (p.input.c != 1 || p.output.c != 1 || p.argmax.c != 1)
    return "channels are not adjacent in all three tensors";
  if (covers(p) > 64) return "more than 64 windows cover a position: scattering is less work";
  if (const char* reason = too_few_channels<kBytes>(p)) return reason;
  return refuse_all_vectors(p);
}

const char* refuse_scatter(const Params& p) {
  return some_window_is_empty(p) ? "a window lies in the padding altogether" : nullptr;
}

using Forward = Kernel<ForwardFn>;
using Backward = Kernel<BackwardFn>;
using Gather = Kernel<GatherFn>;

constexpr const char* kChannels = "vectors over channels, best value and position in registers";
constexpr const char* kPlanes = "one window, vectors along the plane";
constexpr const char* kPairs = "two columns of one output in neighbouring lanes, split by shuffles";
constexpr const char* kRows = "vectors along rows of several planes, separable window";
constexpr const char* kBackChannels = "vectors over channels, gathers from the covering windows";
constexpr const char* kBackTiles = "vectors over channels, each gradient placed in the window's pixels";
constexpr const char* kBackPlanes = "one window: zeros, and the gradient where the maximum was";
constexpr const char* kBackPairs = "vectors of gradients interleaved into both columns of their windows";
constexpr const char* kBackRows = "vectors along the row, gathers from the covering windows";

}  // namespace

std::span<const Forward> forward_kernels() {
  static const Forward rows[] = {
#if defined(__x86_64__)
      {"max_pool_channels_avx512", kChannels, Isa::avx512, refuse_channels<64>,
       kernels_avx512.forward_channels},
      {"max_pool_planes_avx512", kPlanes, Isa::avx512, refuse_forward_planes, kernels_avx512.forward_planes},
      {"max_pool_pairs_avx512", kPairs, Isa::avx512, refuse_forward_pairs, kernels_avx512.forward_pairs},
      {"max_pool_rows_avx512", kRows, Isa::avx512, refuse_rows, kernels_avx512.forward_rows},
      {"max_pool_channels_avx2", kChannels, Isa::avx2, refuse_channels<32>, kernels_avx2.forward_channels},
      {"max_pool_planes_avx2", kPlanes, Isa::avx2, refuse_forward_planes, kernels_avx2.forward_planes},
      {"max_pool_pairs_avx2", kPairs, Isa::avx2, refuse_forward_pairs, kernels_avx2.forward_pairs},
      {"max_pool_rows_avx2", kRows, Isa::avx2, refuse_rows, kernels_avx2.forward_rows},
#endif
      {"max_pool_channels_generic", kChannels, Isa::generic, refuse_channels<16>,
       kernels_generic.forward_channels},
      {"max_pool_planes_generic", kPlanes, Isa::generic, refuse_forward_planes,
       kernels_generic.forward_planes},
      {"max_pool_pairs_generic", kPairs, Isa::generic, refuse_forward_pairs, kernels_generic.forward_pairs},
      {"max_pool_rows_generic", kRows, Isa::generic, refuse_rows, kernels_generic.forward_rows},
      {"max_pool_direct", "plain loops", Isa::generic, nullptr, forward_direct},
      cuda_row("max_pool_channels_cuda", kCudaChannels, refuse_channels_cuda, forward_channels_cuda),
      cuda_row("max_pool_direct_cuda", kCudaDirect, refuse_cuda, forward_direct_cuda),
  };
  return rows;
}

std::span<const Backward> backward_kernels() {
  static const Backward rows[] = {
#if defined(__x86_64__)
      {"max_pool_backward_tiles_avx512", kBackTiles, Isa::avx512, refuse_backward_tiles,
       kernels_avx512.backward_tiles},
      {"max_pool_backward_channels_avx512", kBackChannels, Isa::avx512, refuse_backward_channels<64>,
       kernels_avx512.backward_channels},
      {"max_pool_backward_planes_avx512", kBackPlanes, Isa::avx512, refuse_backward_planes,
       kernels_avx512.backward_planes},
      {"max_pool_backward_pairs_avx512", kBackPairs, Isa::avx512, refuse_backward_pairs,
       kernels_avx512.backward_pairs},
      {"max_pool_backward_rows_avx512", kBackRows, Isa::avx512, refuse_backward_rows,
       kernels_avx512.backward_rows},
      {"max_pool_backward_tiles_avx2", kBackTiles, Isa::avx2, refuse_backward_tiles,
       kernels_avx2.backward_tiles},
      {"max_pool_backward_channels_avx2", kBackChannels, Isa::avx2, refuse_backward_channels<32>,
       kernels_avx2.backward_channels},
      {"max_pool_backward_planes_avx2", kBackPlanes, Isa::avx2, refuse_backward_planes,
       kernels_avx2.backward_planes},
      {"max_pool_backward_pairs_avx2", kBackPairs, Isa::avx2, refuse_backward_pairs,
       kernels_avx2.backward_pairs},
      {"max_pool_backward_rows_avx2", kBackRows, Isa::avx2, refuse_backward_rows, kernels_avx2.backward_rows},
#endif
      {"max_pool_backward_tiles_generic", kBackTiles, Isa::generic, refuse_backward_tiles,
       kernels_generic.backward_tiles},
      {"max_pool_backward_channels_generic", kBackChannels, Isa::generic, refuse_backward_channels<16>,
       kernels_generic.backward_channels},
      {"max_pool_backward_planes_generic", kBackPlanes, Isa::generic, refuse_backward_planes,
       kernels_generic.backward_planes},
      {"max_pool_backward_pairs_generic", kBackPairs, Isa::generic, refuse_backward_pairs,
       kernels_generic.backward_pairs},
      {"max_pool_backward_rows_generic", kBackRows, Isa::generic, refuse_backward_rows,
       kernels_generic.backward_rows},
      {"max_pool_backward_scatter", "adds each gradient where its tap was, plane by plane", Isa::generic,
       refuse_scatter, backward_scatter},
      {"max_pool_backward_direct", "plain loops", Isa::generic, nullptr, backward_direct},
      cuda_row("max_pool_backward_channels_cuda", kCudaChannels, refuse_channels_cuda,
               backward_channels_cuda),
      cuda_row("max_pool_backward_direct_cuda", kCudaDirect, refuse_cuda, backward_direct_cuda),
  };
  return rows;
}

std::span<const Gather> gather_kernels() {
  static const Gather rows[] = {
      {"max_pool_gather", "plain loops", Isa::generic, nullptr, gather},
      cuda_row("max_pool_gather_cuda", kCudaDirect, refuse_cuda, gather_cuda),
  };
  return rows;
}

namespace {
const Register<Gather> register_gather("max_pool_gather", gather_kernels());
const Register<Forward> register_forward("max_pool_forward", forward_kernels());
const Register<Backward> register_backward("max_pool_backward", backward_kernels());
}  // namespace

}  // namespace convnorm::max_pool
