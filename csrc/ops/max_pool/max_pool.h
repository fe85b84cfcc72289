// Max pooling of n images with c channels, 1 to 3 spatial dimensions lifted to d, h, w.
//
//   forward    out[n,c,o]  = max over taps t of in[n, c, i(o,t)],   i(o,t) = o*stride + t*dil - pad
//              arg[n,c,o]  = the tap that gave it
//   backward   gin[n,c,i]  = sum over o with i == i(o, arg[n,c,o]) of gout[n,c,o]
//   gather     val[n,c,o]  = x[n, c, i(o, arg[n,c,o])]              (its transpose: double backward and jvp)
//
// o, t, i are vectors over (d, h, w); taps outside the image do not take part. Taps are tried in row-major
// order and x replaces the best so far when x > best or x is NaN: of equal values the first is kept, of
// several NaN the last, and -inf never replaces the first tap inside the image. This is torch's rule.
//
// The recorded tap has three forms: the offset (t_d*k_h + t_h)*k_w + t_w in one byte or in an int32, or
// torch's index (i_d*in_h + i_h)*in_w + i_w as int64. The byte is what autograd keeps: 8 times less than the
// index.
//
// Sums of the backward run over o in row-major order in every kernel, so all kernels give the same bits.
//
// This header is torch-free: it is the contract between the host file (max_pool.cpp) and the kernels (cpu/).
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include "common/dtype.h"
#include "common/kernel_row.h"
#include "common/parallel.h"
#include "common/window.h"

namespace convnorm::max_pool {

enum class Argmax : std::uint8_t { none, offset8, offset32, index64 };

// One problem. In the backward, `input` strides are those of grad_input, `output` those of grad_output.
struct Params {
  DType dtype = DType::f32;
  Argmax record = Argmax::none;
  std::int64_t n = 0, c = 0;
  Dims in{1, 1, 1}, out{1, 1, 1};
  Window window;
  Strides input, output, argmax;
  Device device;
  bool aligned = false;  // on CUDA: every tensor starts at a multiple of 16 bytes
};

inline std::int64_t positions(const Window& w) { return w.kernel[0] * w.kernel[1] * w.kernel[2]; }
inline std::int64_t plane(const Params& p) { return p.in[0] * p.in[1] * p.in[2]; }

// The taps [begin, end) of window o that lie inside the image along dimension d. begin is the first tap at a
// coordinate >= 0 even when there is none: with padding and dilation a window can miss the image.
struct Taps {
  std::int64_t begin, end;
  bool operator==(const Taps& other) const { return begin == other.begin && end == other.end; }
};

inline Taps taps_inside(const Params& p, int d, std::int64_t o) {
  const std::int64_t start = o * p.window.stride[d] - p.window.pad[d], dil = p.window.dil[d];
  const std::int64_t begin = start < 0 ? (-start + dil - 1) / dil : 0;
  const std::int64_t end = start < p.in[d] ? (p.in[d] - start + dil - 1) / dil : 0;
  return {begin, end < p.window.kernel[d] ? end : p.window.kernel[d]};
}

// The coordinate of tap t of window o.
inline std::int64_t at(const Params& p, int d, std::int64_t o, std::int64_t t) {
  return o * p.window.stride[d] - p.window.pad[d] + t * p.window.dil[d];
}

// True when some window lies in the padding altogether.
bool some_window_is_empty(const Params& p);

using ForwardFn = void (*)(const Params& p, const void* input, void* output, void* argmax);
using BackwardFn = void (*)(const Params& p, const void* grad_output, const void* argmax, void* grad_input);

template <class Fn>
using Kernel = KernelRow<Params, Fn>;

using GatherFn = void (*)(const Params& p, const void* x, const void* argmax, void* values);

std::span<const Kernel<ForwardFn>> forward_kernels();
std::span<const Kernel<BackwardFn>> backward_kernels();
std::span<const Kernel<GatherFn>> gather_kernels();

// What each instruction set exports.
struct Kernels {
  ForwardFn forward_planes;    // one window per plane, NCHW (cpu/max_pool_planes.h)
  ForwardFn forward_pairs;     // two columns per output, NCHW (cpu/max_pool_pairs.h)
  ForwardFn forward_rows;      // vectors along the output row (cpu/max_pool_rows.h)
  ForwardFn forward_channels;  // vectors over channels (cpu/max_pool_channels.h)
  BackwardFn backward_planes;  // their backwards, each gradient written once
  BackwardFn backward_pairs;
  BackwardFn backward_rows;
  BackwardFn backward_channels;
  BackwardFn backward_tiles;  // windows that tile the image, channels_last (cpu/max_pool_backward_tiles.h)
};
extern const Kernels kernels_generic;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

// Scalar code for every problem: the definitions above as loops (cpu/max_pool_direct.cpp).
void forward_direct(const Params& p, const void* input, void* output, void* argmax);
void backward_direct(const Params& p, const void* grad_output, const void* argmax, void* grad_input);
// Writes each gradient where its tap was (cpu/max_pool_scatter.cpp).
void backward_scatter(const Params& p, const void* grad_output, const void* argmax, void* grad_input);
// values[o] = x[i(o, arg[o])]
void gather(const Params& p, const void* x, const void* argmax, void* values);

// On CUDA (cuda/): 16 bytes of channels per thread, or one element and any strides.
CONVNORM_CUDA_KERNEL void forward_channels_cuda(const Params& p, const void* input, void* output,
                                                void* argmax);
CONVNORM_CUDA_KERNEL void forward_direct_cuda(const Params& p, const void* input, void* output, void* argmax);
CONVNORM_CUDA_KERNEL void backward_channels_cuda(const Params& p, const void* grad_output, const void* argmax,
                                                 void* grad_input);
CONVNORM_CUDA_KERNEL void backward_direct_cuda(const Params& p, const void* grad_output, const void* argmax,
                                               void* grad_input);
CONVNORM_CUDA_KERNEL void gather_cuda(const Params& p, const void* x, const void* argmax, void* values);

}  // namespace convnorm::max_pool
