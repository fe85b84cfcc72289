// Backward of adaptive max pooling with one value per plane in channels_last: every position of a block of
// channels is written once, in the order of memory, where its number is compared with the block's indices.
// Task = one image and kSlab channels, whose values and indices wait in lanes of one width on the stack.
#pragma once

#include "ops/max_pool/cpu/max_pool_kernel.h"

namespace convnorm::max_pool {
namespace {

constexpr std::int64_t kSlab = 512;

template <class T>
void spread_slab_of(const Params& p, std::int64_t channels, const T* values, const std::int64_t* indices,
                    T* to) {
  using C = compute_t<T>;
  constexpr std::int64_t lanes = kLanes<C>;
  alignas(64) C value[kSlab];
  alignas(64) code_t<C> code[kSlab];
  const std::int64_t positions = plane(p), step = p.input.s[2], whole = channels / lanes * lanes;
  for (std::int64_t k = 0; k < channels; ++k) {
    const bool inside = indices[k] >= 0 && indices[k] < positions;
    code[k] = inside ? static_cast<code_t<C>>(indices[k]) : -1;  // no position has this number
    value[k] = C(0) + load1(values + k);                         // as a sum that starts at zero: never -0
  }
  ivec<C> here{};
  for (std::int64_t i = 0; i < positions; ++i, to += step, here += 1) {
    for (std::int64_t k = 0; k < whole; k += lanes)
      store(to + k, load_code<C>(code + k) == here ? load(value + k) : vec<C>{});
    for (std::int64_t k = whole; k < channels; ++k) store1(to + k, code[k] == i ? value[k] : C(0));
  }
}

void spread_channels(const Params& p, const void* values, const void* indices, void* to) {
  const std::int64_t slabs = ceil_div(p.c, kSlab);
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_for(
        p.n * slabs, ceil_div(32768, plane(p) * imin(kSlab, p.c)), [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t t = begin; t < end; ++t) {
            const std::int64_t n = t / slabs, c = t % slabs * kSlab;
            spread_slab_of(p, imin(kSlab, p.c - c), static_cast<const T*>(values) + n * p.output.n + c,
                           static_cast<const std::int64_t*>(indices) + n * p.argmax.n + c,
                           static_cast<T*>(to) + n * p.input.n + c);
          }
        });
  });
}

}  // namespace
}  // namespace convnorm::max_pool
