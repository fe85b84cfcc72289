// The definitions of avg_pool.h as plain loops, for every problem: slow, and meant to be read. Sums in
// double.
#include "ops/avg_pool/avg_pool.h"

#include "cpu/target_generic.h"

#include "cpu/vec.h"

namespace convnorm::avg_pool {
namespace {

inline std::int64_t element(const Strides& s, std::int64_t n, std::int64_t c, const Dims& i) {
  return n * s.n + c * s.c + i[0] * s.s[0] + i[1] * s.s[1] + i[2] * s.s[2];
}

inline std::int64_t flat(const Params& p, const Dims& i) { return (i[0] * p.in[1] + i[1]) * p.in[2] + i[2]; }

template <class F>
void each_position(const Dims& size, F&& f) {
  Dims i;
  for (i[0] = 0; i[0] < size[0]; ++i[0])
    for (i[1] = 0; i[1] < size[1]; ++i[1])
      for (i[2] = 0; i[2] < size[2]; ++i[2]) f(i);
}

template <class F>
void each_inside(const Params& p, const Dims& o, F&& f) {
  const Span d = span_inside(p, 0, o[0]), h = span_inside(p, 1, o[1]), w = span_inside(p, 2, o[2]);
  Dims i;
  for (i[0] = d.begin; i[0] < d.end; ++i[0])
    for (i[1] = h.begin; i[1] < h.end; ++i[1])
      for (i[2] = w.begin; i[2] < w.end; ++i[2]) f(i);
}

// In double the three divisions in turn differ from one by less than any result's rounding.
inline double divided(const Params& p, const Dims& o, double sum) {
  for (int d = 0; d < kSpatial; ++d) sum /= static_cast<double>(count(p, d, o[d]));
  return sum;
}

template <class F>
void each_plane(const Params& p, F&& f) {
  parallel_for(p.n * p.c, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t q = begin; q < end; ++q) f(q / p.c, q % p.c);
  });
}

}  // namespace

void forward_direct(const Params& p, const void* input, void* output) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    each_plane(p, [&](std::int64_t n, std::int64_t c) {
      each_position(p.out, [&](const Dims& o) {
        double sum = 0;
        each_inside(p, o, [&](const Dims& i) {
          sum += load1(static_cast<const T*>(input) + element(p.input, n, c, i));
        });
        store1(static_cast<T*>(output) + element(p.output, n, c, o),
               static_cast<compute_t<T>>(divided(p, o, sum)));
      });
    });
  });
}

void backward_direct(const Params& p, const void* grad_output, void* grad_input) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    each_plane(p, [&](std::int64_t n, std::int64_t c) {
      const std::int64_t size = p.in[0] * p.in[1] * p.in[2];
      auto* sums = static_cast<double*>(scratch_bytes(Slot::local, size * sizeof(double)));
      for (std::int64_t i = 0; i < size; ++i) sums[i] = 0;
      each_position(p.out, [&](const Dims& o) {
        const double g = load1(static_cast<const T*>(grad_output) + element(p.output, n, c, o));
        each_inside(p, o, [&](const Dims& i) { sums[flat(p, i)] += divided(p, o, g); });
      });
      each_position(p.in, [&](const Dims& i) {
        store1(static_cast<T*>(grad_input) + element(p.input, n, c, i),
               static_cast<compute_t<T>>(sums[flat(p, i)]));
      });
    });
  });
}

}  // namespace convnorm::avg_pool
