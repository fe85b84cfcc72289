// Average pooling's geometry as its kernels for CUDA use it: 32 bits along an axis and within an image. Plain
// C++, tested by the host against avg_pool.h.
#pragma once

#include "cuda/order.h"
#include "ops/avg_pool/avg_pool.h"

namespace convnorm::avg_pool {

struct Axis {
  int in, out, kernel, stride, pad;
  bool adaptive, include_pad;
  cuda::Divider by_stride;

  // floor(o*n/m) and ceil((o+1)*n/m), as adaptive_span(n, m, o).
  CONVNORM_HD static void share(std::int64_t n, std::int64_t m, std::int64_t o, int& begin, int& end) {
    begin = static_cast<int>(o * n / m);
    end = static_cast<int>(((o + 1) * n + m - 1) / m);
  }
  // What window o sums, as span_inside(), and what it counts, as count().
  CONVNORM_HD void span(int o, int& begin, int& end) const {
    if (adaptive) return share(in, out, o, begin, end);
    const int start = o * stride - pad, stop = start + kernel;
    begin = start > 0 ? start : 0;
    end = stop < in ? stop : in;
  }
  CONVNORM_HD int count(int o) const {
    int begin, end;
    span(o, begin, end);
    if (adaptive || !include_pad) return end - begin;
    const int start = o * stride - pad, stop = start + kernel;
    return (stop < in + pad ? stop : in + pad) - start;
  }
  // The windows that hold position i: of adaptive pooling, what sharing `out` among `in` gives.
  CONVNORM_HD void covering(int i, int& begin, int& end) const {
    if (adaptive) return share(out, in, i, begin, end);
    const int x = i + pad;
    begin = x < kernel ? 0 : static_cast<int>(by_stride.divide(static_cast<std::uint32_t>(x - kernel))) + 1;
    end = static_cast<int>(by_stride.divide(static_cast<std::uint32_t>(x))) + 1;
    if (end > out) end = out;
  }
};

struct Problem {
  Axis axis[kSpatial];
  std::int64_t divisor;  // in place of the counts, unless 0
  cuda::Order outputs, inputs;

  CONVNORM_HD double divisor_of(int od, int oh, int ow) const {
    if (divisor != 0) return static_cast<double>(divisor);
    return static_cast<double>(axis[0].count(od)) * axis[1].count(oh) * axis[2].count(ow);
  }
};

inline Problem problem_of(const Params& p, int vector) {
  Problem q{};
  q.divisor = p.divisor;
  for (int d = 0; d < kSpatial; ++d) {
    const Window& w = p.window;
    q.axis[d] = {static_cast<int>(p.in[d]),
                 static_cast<int>(p.out[d]),
                 static_cast<int>(w.kernel[d]),
                 static_cast<int>(w.stride[d]),
                 static_cast<int>(w.pad[d]),
                 p.adaptive,
                 p.include_pad,
                 cuda::Divider(w.stride[d])};
  }
  const bool channels_first = p.output.c == 1 && p.c > 1;
  q.outputs = cuda::order_of(p.out, p.c / vector, channels_first);
  q.inputs = cuda::order_of(p.in, p.c / vector, channels_first);
  return q;
}

inline const char* refuse_cuda(const Params& p) {
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
  std::int64_t inputs = p.c, outputs = p.c;
  for (int d = 0; d < kSpatial; ++d) {
    const std::int64_t extent = p.in[d] + 2 * p.window.pad[d] + p.window.kernel[d] + p.window.stride[d];
    if (extent > most || p.out[d] > most) return "an extent needs more than 31 bits";
    inputs *= p.in[d];
    outputs *= p.out[d];
  }
  return inputs > most || outputs > most ? "an image has more than 2^31 elements" : nullptr;
}

inline const char* refuse_channels_cuda(const Params& p) {
  const int vector = 16 / bytes(p.dtype);
  if (p.dtype == DType::f64) return "doubles are moved one by one";
  if (p.c % vector != 0) return "channels are not made of vectors of 16 bytes";
  if (!p.aligned || !cuda::in_vectors(p.n, p.input, p.in, vector) ||
      !cuda::in_vectors(p.n, p.output, p.out, vector))
    return "channels are not adjacent, or not on 16 bytes";
  return refuse_cuda(p);
}

}  // namespace convnorm::avg_pool
