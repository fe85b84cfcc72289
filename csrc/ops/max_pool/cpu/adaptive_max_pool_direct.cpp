// Adaptive max pooling as plain loops: every problem, one value at a time.
#include "ops/max_pool/adaptive_max_pool.h"

#include "cpu/target_generic.h"

#include "ops/max_pool/cpu/max_pool_scalar.h"

namespace convnorm::max_pool {
namespace {

template <class T>
void pool_plane(const Params& p, std::int64_t n, std::int64_t c, const T* input, T* output,
                std::int64_t* indices) {
  using C = compute_t<T>;
  each_output(p, [&](const Dims& o) {
    Span span[kSpatial];
    for (int d = 0; d < kSpatial; ++d) span[d] = adaptive_span(p.in[d], p.out[d], o[d]);
    Dims i{span[0].begin, span[1].begin, span[2].begin};
    const auto index = [&] { return (i[0] * p.in[1] + i[1]) * p.in[2] + i[2]; };
    C best = -std::numeric_limits<C>::infinity();
    std::int64_t where = index();
    for (i[0] = span[0].begin; i[0] < span[0].end; ++i[0])
      for (i[1] = span[1].begin; i[1] < span[1].end; ++i[1])
        for (i[2] = span[2].begin; i[2] < span[2].end; ++i[2]) {
          const C x = load1(input + element(p.input, n, c, i));
          if (x > best || x != x) best = x, where = index();
        }
    store1(output + element(p.output, n, c, o), best);
    if (p.record != Argmax::none) indices[element(p.argmax, n, c, o)] = where;
  });
}

}  // namespace

void adaptive_direct(const Params& p, const void* input, void* output, void* indices) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    each_plane(p, [&](std::int64_t n, std::int64_t c) {
      pool_plane(p, n, c, static_cast<const T*>(input), static_cast<T*>(output),
                 static_cast<std::int64_t*>(indices));
    });
  });
}

}  // namespace convnorm::max_pool
