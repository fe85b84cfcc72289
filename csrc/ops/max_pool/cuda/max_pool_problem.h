// Max pooling's geometry as its kernels for CUDA use it: 32 bits along an axis and within an image, 64 bits
// between images; divisions prepared. Plain C++, tested by the host against max_pool.h.
#pragma once

#include "cuda/order.h"
#include "ops/max_pool/max_pool.h"

namespace convnorm::max_pool {

struct Axis {
  int in, out, kernel, stride, pad, dil;
  cuda::Divider by_stride, by_dil;

  // The taps of window o inside the image, as taps_inside().
  CONVNORM_HD void taps(int o, int& begin, int& end) const {
    const int start = o * stride - pad;
    begin = start < 0 ? static_cast<int>(by_dil.divide(static_cast<std::uint32_t>(dil - 1 - start))) : 0;
    end = start < in ? static_cast<int>(by_dil.divide(static_cast<std::uint32_t>(in - 1 - start))) + 1 : 0;
    if (end > kernel) end = kernel;
  }
  CONVNORM_HD int at(int o, int t) const { return o * stride - pad + t * dil; }

  // The windows [begin, end) whose extent covers coordinate i, ...
  CONVNORM_HD void covering(int i, int& begin, int& end) const {
    const int x = i + pad, reach = dil * (kernel - 1) + 1;
    begin = x < reach ? 0 : static_cast<int>(by_stride.divide(static_cast<std::uint32_t>(x - reach))) + 1;
    end = static_cast<int>(by_stride.divide(static_cast<std::uint32_t>(x))) + 1;
    if (end > out) end = out;
  }
  // ... and the tap by which window o has it, or -1 where dilation passes over it.
  CONVNORM_HD int tap(int i, int o) const {
    const int r = i + pad - o * stride;
    if (dil == 1) return r;
    const int t = static_cast<int>(by_dil.divide(static_cast<std::uint32_t>(r)));
    return t * dil == r ? t : -1;
  }
};

struct Problem {
  Axis axis[kSpatial];
  Argmax record;
  std::int64_t input_n, input_c, input_s[kSpatial];
  std::int64_t output_n, output_c, output_s[kSpatial];
  std::int64_t argmax_n, argmax_c, argmax_s[kSpatial];
  cuda::Order outputs, inputs;  // c counts vectors

  // The tap's offset in the window, or the position in the plane: what is recorded.
  CONVNORM_HD int code(int td, int th, int tw, int id, int ih, int iw) const {
    return record == Argmax::index64 ? (id * axis[1].in + ih) * axis[2].in + iw
                                     : (td * axis[1].kernel + th) * axis[2].kernel + tw;
  }
};

inline constexpr int kThreads = cuda::kImageThreads;

inline Problem problem_of(const Params& p, int vector) {
  Problem q{};
  q.record = p.record;
  const auto strides = [](const Strides& from, std::int64_t& n, std::int64_t& c,
                          std::int64_t (&s)[kSpatial]) {
    n = from.n;
    c = from.c;
    for (int d = 0; d < kSpatial; ++d) s[d] = from.s[d];
  };
  strides(p.input, q.input_n, q.input_c, q.input_s);
  strides(p.output, q.output_n, q.output_c, q.output_s);
  strides(p.argmax, q.argmax_n, q.argmax_c, q.argmax_s);
  for (int d = 0; d < kSpatial; ++d) {
    const Window& w = p.window;
    q.axis[d] = {static_cast<int>(p.in[d]),     static_cast<int>(p.out[d]), static_cast<int>(w.kernel[d]),
                 static_cast<int>(w.stride[d]), static_cast<int>(w.pad[d]), static_cast<int>(w.dil[d]),
                 cuda::Divider(w.stride[d]),    cuda::Divider(w.dil[d])};
  }
  const bool channels_first = p.output.c == 1 && p.c > 1;
  q.outputs = cuda::order_of(p.out, p.c / vector, channels_first);
  q.inputs = cuda::order_of(p.in, p.c / vector, channels_first);
  return q;
}

}  // namespace convnorm::max_pool
