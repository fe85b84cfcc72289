// The ordered lists of adaptive max pooling's and max un-pooling's kernels, and what each of them refuses.
#include "ops/max_pool/adaptive_max_pool.h"

#include <array>
#include <utility>

#include "common/registry.h"
#include "cpu/isa.h"
#include "ops/max_pool/cuda/adaptive_max_pool_problem.h"

namespace convnorm::max_pool {
namespace {

const char* refuse_large(const Params& p) {
  return plane(p) > std::numeric_limits<std::int32_t>::max() ? "positions need more than 31 bits" : nullptr;
}

template <int kBytes>
const char* refuse_channels(const Params& p) {
  if (p.input.c != 1 || p.output.c != 1) return "channels are not adjacent in input and output";
  if (p.c < kBytes / (p.dtype == DType::f64 ? 8 : 4)) return "fewer channels than vector lanes";
  return refuse_large(p);
}

template <int kBytes>
const char* refuse_spread(const Params& p) {
  if (p.out[0] * p.out[1] * p.out[2] != 1) return "not one value per plane";
  if (p.argmax.c != 1) return "channels of the indices are not adjacent";
  return refuse_channels<kBytes>(p);
}

const char* refuse_scatter(const Params& p) {
  if (p.dtype != DType::f32 && p.dtype != DType::f64) return "16-bit sums are kept in float";
  if (p.argmax.c != 1) return "channels of the indices are not adjacent";
  return refuse_channels<64>(p);
}

constexpr const char* kScatter = "eight channels at once: sums gathered, added to, scattered";
constexpr const char* kSpread = "vectors over channels, positions compared with the index";
constexpr const char* kChannels = "vectors over channels, best value and index in registers";
constexpr const char* kPlanes = "vectors over planes, turned into lanes row by row";

constexpr const char* kOneByOne = "at its index, one value after the other";
constexpr const char* kCudaTiles = "tiles of planes in shared memory; all their indices read in order";

const Register<Kernel<ForwardFn>> register_adaptive("adaptive_max_pool_forward", adaptive_kernels());
const Register<Kernel<BackwardFn>> register_spread("adaptive_max_pool_backward", spread_kernels());
const Register<Kernel<PlaceFn>> register_place("max_unpool_forward", place_kernels());
const Register<Kernel<GatherFn>> register_pick("max_unpool_backward", pick_kernels());

}  // namespace

std::span<const Kernel<ForwardFn>> adaptive_kernels() {
  static const Kernel<ForwardFn> rows[] = {
#if defined(__x86_64__)
      {"adaptive_max_pool_channels_avx512", kChannels, Isa::avx512, refuse_channels<64>,
       adaptive_avx512.channels},
      {"adaptive_max_pool_planes_avx512", kPlanes, Isa::avx512, refuse_large, adaptive_avx512.planes},
      {"adaptive_max_pool_channels_avx2", kChannels, Isa::avx2, refuse_channels<32>, adaptive_avx2.channels},
      {"adaptive_max_pool_planes_avx2", kPlanes, Isa::avx2, refuse_large, adaptive_avx2.planes},
#endif
      {"adaptive_max_pool_channels_generic", kChannels, Isa::generic, refuse_channels<16>,
       adaptive_generic.channels},
      {"adaptive_max_pool_planes_generic", kPlanes, Isa::generic, refuse_large, adaptive_generic.planes},
      {"adaptive_max_pool_direct", "plain loops", Isa::generic, nullptr, adaptive_direct},
      cuda_row("adaptive_max_pool_channels_cuda", kCudaChannels, refuse_channels_cuda,
               adaptive_channels_cuda),
      cuda_row("adaptive_max_pool_warp_cuda", "a warp per window, any strides", refuse_warp_cuda,
               adaptive_warp_cuda),
      cuda_row("adaptive_max_pool_direct_cuda", kCudaDirect, refuse_cuda, adaptive_direct_cuda),
  };
  return rows;
}

std::span<const Kernel<BackwardFn>> spread_kernels() {
  static const auto rows = [] {
    std::array all = std::to_array<Kernel<BackwardFn>>({
        cuda_row("adaptive_max_pool_backward_tiles_cuda", kCudaTiles, refuse_indices_cuda, spread_cuda),
#if defined(__x86_64__)
        {"adaptive_max_pool_backward_channels_avx512", kSpread, Isa::avx512, refuse_spread<64>,
         adaptive_avx512.spread},
        {"adaptive_max_pool_backward_channels_avx2", kSpread, Isa::avx2, refuse_spread<32>,
         adaptive_avx2.spread},
#endif
        {"adaptive_max_pool_backward_channels_generic", kSpread, Isa::generic, refuse_spread<16>,
         adaptive_generic.spread},
#if defined(__x86_64__)
        {"adaptive_max_pool_backward_scatter_avx512", kScatter, Isa::avx512, refuse_scatter,
         adaptive_avx512.scatter},
#endif
        {"adaptive_max_pool_backward_scatter", "values added at their indices, one by one", Isa::generic,
         nullptr, spread_indices},
    });
    if (!scatter_is_fast()) std::swap(all.end()[-1], all.end()[-2]);
    return all;
  }();
  return rows;
}

std::span<const Kernel<PlaceFn>> place_kernels() {
  static const Kernel<PlaceFn> rows[] = {
      {"max_unpool_direct", kOneByOne, Isa::generic, nullptr, place_indices},
      cuda_row("max_unpool_tiles_cuda", kCudaTiles, refuse_indices_cuda, place_cuda),
  };
  return rows;
}

std::span<const Kernel<GatherFn>> pick_kernels() {
  static const Kernel<GatherFn> rows[] = {
      {"max_unpool_backward_direct", kOneByOne, Isa::generic, nullptr, pick_indices},
      cuda_row("max_unpool_backward_direct_cuda", kCudaDirect, refuse_cuda, gather_cuda),
  };
  return rows;
}

}  // namespace convnorm::max_pool
