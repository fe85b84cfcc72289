// Average pooling of n images with c channels, 1 to 3 spatial dimensions lifted to d, h, w.
//
//   forward    out[n,c,o] = sum over i in window o of in[n,c,i] / divisor(o)
//   backward   gin[n,c,i] = sum over windows o that hold i of gout[n,c,o] / divisor(o)
//
// Each is linear and the transpose of the other, so derivatives of any order need nothing else.
//
// o, i are vectors over (d, h, w), and a window is a box: one span per dimension. Plain pooling has the span
// [o*stride - pad, o*stride - pad + kernel), of which only what lies inside the image is summed; adaptive
// pooling shares `in` elements among `out` windows (adaptive_span, common/window.h). A span counts in the
// divisor with its size inside the image, or (include_pad) inside the image and its padding; divisor_override
// stands in place of the product of the three counts. There is one
// division: torch's adaptive pooling divides by one count after the other in places, which rounds twice.
//
// 16-bit values are summed in float. Chains of more than 16 additions are cut into 16s whose sums are added
// (windows of more than 64 positions), so that the error of a large window does not grow with its size.
//
// This header is torch-free: it is the contract between the host file (avg_pool.cpp) and the kernels (cpu/).
#pragma once

#include <cstdint>
#include <span>

#include "common/dtype.h"
#include "common/kernel_row.h"
#include "common/parallel.h"
#include "common/window.h"

namespace convnorm::avg_pool {

// One problem. In the backward, `input` strides are those of grad_input, `output` those of grad_output.
struct Params {
  DType dtype = DType::f32;
  std::int64_t n = 0, c = 0;
  Dims in{1, 1, 1}, out{1, 1, 1};
  Window window;             // of plain pooling
  bool adaptive = false;     // windows by adaptive_span
  bool include_pad = true;   // padding counts
  std::int64_t divisor = 0;  // in place of the counts, unless 0
  Strides input, output;
  Device device;
  bool aligned = false;  // on CUDA: both tensors start at a multiple of 16 bytes
};

// What window o sums along dimension d.
inline Span span_inside(const Params& p, int d, std::int64_t o) {
  if (p.adaptive) return adaptive_span(p.in[d], p.out[d], o);
  const std::int64_t begin = o * p.window.stride[d] - p.window.pad[d], end = begin + p.window.kernel[d];
  return {begin > 0 ? begin : 0, end < p.in[d] ? end : p.in[d]};
}

// Its factor in the divisor.
inline std::int64_t count(const Params& p, int d, std::int64_t o) {
  if (p.divisor != 0) return d == 0 ? p.divisor : 1;
  if (p.adaptive || !p.include_pad) return span_inside(p, d, o).size();
  const std::int64_t begin = o * p.window.stride[d] - p.window.pad[d], end = begin + p.window.kernel[d];
  const std::int64_t last = p.in[d] + p.window.pad[d];
  return (end < last ? end : last) - begin;
}

// Outputs of plain pooling whose windows, rounded up to whole strides, lie inside the row.
inline Span whole_windows(const Params& p) {
  const std::int64_t s = p.window.stride[2], pad = p.window.pad[2];
  const std::int64_t last = p.in[2] + pad - (p.window.kernel[2] + s - 1) / s * s;  // start of the last one
  const std::int64_t begin = (pad + s - 1) / s, end = last < 0 ? 0 : last / s + 1;
  return {begin, end < p.out[2] ? end : p.out[2]};
}

// The same problem with the dimensions that one window spans merged where memory allows: global pooling of a
// dense plane is one run of positions.
Params merged(const Params& p);

using Fn = void (*)(const Params& p, const void* from, void* to);

using Kernel = KernelRow<Params, Fn>;

std::span<const Kernel> forward_kernels();
std::span<const Kernel> backward_kernels();

// What each instruction set exports.
struct Kernels {
  Fn forward_runs;       // global pooling of short dense planes (cpu/avg_pool_runs.h)
  Fn forward_channels;   // vectors over channels (cpu/avg_pool_channels.h)
  Fn forward_rows;       // vectors along the row, strides 1 and 2 (cpu/avg_pool_rows.h)
  Fn forward_planes;     // vectors over planes that are turned into lanes (cpu/avg_pool_planes.h)
  Fn backward_channels;  // their backwards, each gradient written once
  Fn backward_rows;
  Fn backward_planes;
};
extern const Kernels kernels_generic;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

// Scalar code for every problem: the definitions above as loops (cpu/avg_pool_direct.cpp).
void forward_direct(const Params& p, const void* input, void* output);
void backward_direct(const Params& p, const void* grad_output, void* grad_input);

// On CUDA (cuda/): 16 bytes of channels per thread, or one element and any strides.
CONVNORM_CUDA_KERNEL void forward_channels_cuda(const Params& p, const void* input, void* output);
CONVNORM_CUDA_KERNEL void forward_direct_cuda(const Params& p, const void* input, void* output);
CONVNORM_CUDA_KERNEL void backward_channels_cuda(const Params& p, const void* grad_output, void* grad_input);
CONVNORM_CUDA_KERNEL void backward_direct_cuda(const Params& p, const void* grad_output, void* grad_input);

}  // namespace convnorm::avg_pool
