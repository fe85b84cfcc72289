// The ordered lists of adaptive max pooling's kernels, what each of them refuses, and the merging of
// dimensions.
#include "ops/max_pool/adaptive_max_pool.h"

#include <array>
#include <utility>

#include "common/registry.h"
#include "cpu/isa.h"

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

const Register<Kernel<ForwardFn>> register_adaptive("adaptive_max_pool_forward", adaptive_kernels());
const Register<Kernel<BackwardFn>> register_spread("adaptive_max_pool_backward", spread_kernels());

}  // namespace

Params merged(const Params& p) {
  Params m = p;
  for (int d = 1; d >= 0; --d) {
    const bool dense = m.in[d] == 1 || m.input.s[d] == m.in[2] * m.input.s[2];
    if (m.out[d] != 1 || m.out[2] != 1 || !dense) break;
    m.in[2] *= m.in[d];
    m.in[d] = 1;
  }
  return m;
}

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
  };
  return rows;
}

std::span<const Kernel<BackwardFn>> spread_kernels() {
  static const auto rows = [] {
    std::array all = std::to_array<Kernel<BackwardFn>>({
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

}  // namespace convnorm::max_pool
