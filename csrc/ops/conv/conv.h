// Convolution (cross-correlation) of n images with c channels by k filters, 1 to 3 spatial dimensions lifted
// to d, h, w.
//
//   forward     out[n,k,o] = bias[k] + sum over c, r of w[k,c,r] * in[n, c, o*stride + r*dil - pad]
//               or, where asked for, act(out + residual), act = relu or nothing
//   by input    gin[n,c,i] = sum over k, r with o*stride + r*dil - pad == i of w[k,c,r] * gout[n,k,o]
//   by weight   gw[k,c,r]  = sum over n, o of gout[n,k,o] * in[n, c, o*stride + r*dil - pad],  gbias[k] = sum
//   of gout[n,k,o]
//
// o, i, r are vectors over (d, h, w); c and k run within a group; `in` is zero outside the image. The three
// are one trilinear form, so the derivative of each is made of the other two.
//
// This header is torch-free: it is the contract between the host file (conv.cpp) and the kernels (cpu/).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/dtype.h"
#include "common/kernel_row.h"
#include "common/window.h"

namespace convnorm::conv {

enum class Pass { forward, by_input, by_weight };

struct Weight {
  void* data = nullptr;  // (k, c / groups, d, h, w)
  std::int64_t stride_k = 0, stride_c = 0;
  Dims stride{0, 0, 0};
};

// One problem. Each pass reads two of input, weight, output and writes the third.
struct Params {
  Pass pass;
  DType dtype;
  View5 input;   // n, c, in_d, in_h, in_w; by input, in one piece of memory
  View5 output;  // n, k, out_d, out_h, out_w
  Weight weight;
  void* bias = nullptr;  // forward: (k) or null. by_weight: grad_bias (k) or null
  Window window;
  std::int64_t groups = 1;
  const void* residual = nullptr;  // forward: laid out as output; or null
  bool relu = false;               // forward
  const void* packed = nullptr;    // forward: the weights as the kernel's WeightPacking made them, or null
  Device device;
  void* workspace = nullptr;
};

using Kernel = KernelRow<Params>;

std::span<const Kernel> kernels(Pass pass);

// The reference: patches as rows of a matrix (im2col), one plain matrix product per image and group
// (cpu/conv_im2col.cpp).
void im2col_forward(const Params& p);
void im2col_by_input(const Params& p);
void im2col_by_weight(const Params& p);

// --- implicit GEMM: one packed micro-kernel for every dense pass (cpu/conv_igemm_*.{h,cpp})
// -------------------------

// One spatial axis of a dense sub-problem. Output o, tap t reads source o*step + offset + t*offset_step (zero
// outside [0, source)); everything is affine, so strided gradients are several such problems instead of
// zero-stuffed ones.
struct Axis {
  std::int64_t out, out_stride;        // outputs, and their distance in elements
  std::int64_t source, source_stride;  // source extent and stride
  std::int64_t step;
  std::int64_t taps, offset, offset_step;
  std::int64_t weight_step;  // elements between the weights of consecutive taps
};

// dst[n, g, o, p] = act(bias[o] + residual[n, g, o, p] + sum over r, t of weight[g, o, r, t] * src[n, g, r, p
// @ t])
struct Dense {
  DType dtype;
  Axis axis[kSpatial];
  std::int64_t n, groups;
  std::int64_t red_c, out_c;  // channels summed over and written, per group
  const void* src;
  std::int64_t src_n, src_c;
  void* dst;  // by weight: the gradient of dst, which is read
  std::int64_t dst_n, dst_c;
  void* weight;  // by weight: written
  std::int64_t weight_group, weight_out, weight_red;
  void* bias;
  const void* residual;  // laid out as dst, or null
  bool relu;
  const void* packed;  // the weights in the kernel's own layout, or null
};

// A kernel's own layout of the weights of a problem.
struct DensePacking {
  std::int64_t (*bytes)(const Dense&);
  void (*pack)(const Dense&, void* out);
};

// The residual of the elements from `to`, which is a pointer into dst; null if there is none. Each
// instruction set keeps its own.
namespace {
template <class D>
[[maybe_unused]] const D* residual_at(const Dense& d, const D* to) {
  return d.residual ? static_cast<const D*>(d.residual) + (to - static_cast<const D*>(d.dst)) : nullptr;
}
}  // namespace

// Forward as one Dense problem; by input as one per residue of the stride; both geometry only, tested by
// brute force.
Dense forward_problem(const Params& p);
std::vector<Dense> by_input_problems(const Params& p);

// A window of step s over c channels of one plane as a window of step 1 over s_h * s_w * c channels: the
// pixels that the step skips are channels of a folded image, channels_last with whole cache lines per pixel,
// and no padding. Shapes and strides; input and weight have no data yet.
//
//   folded[y][x][(p_h, p_w, c)] = in[s_h y + p_h - pad_h][s_w x + p_w - pad_w][c]
//   w'[k][(p_h, p_w, c)][i][j]  = w[k][c][s_h i + p_h][s_w j + p_w]              both zero outside
Params folded_problem(const Params& p);

inline std::int64_t pixels(const View5& v) { return v.size[0] * v.size[1] * v.size[2]; }

// The same problem on channels_last images, which have no data yet.
Params channels_last_problem(const Params& p);

// The implementations per instruction set.
struct Igemm {
  void (*gemm)(const Dense&);
  DensePacking packing;  // of gemm
  void (*by_input)(const Params&);
  void (*by_weight)(const Dense&);
  void (*grouped)(const Dense&);            // few channels per group, channels_last results
  void (*grouped_by_weight)(const Dense&);  // few channels per group
  void (*col2im)(const Params&);            // by input of few channels, channels_last
  void (*turned)(const Params&);            // forward and by input of small images, by channels_last copies
};
extern const Igemm igemm_generic;
#if defined(__x86_64__)
extern const Igemm igemm_avx2;
extern const Igemm igemm_avx512;
#endif

// Why small images are not turned; null when they are.
const char* turned_refusal(const Params& p);

// Why the kernels for few channels, with vectors of so many bytes, do not take a problem; null when they do.
template <int kVectorBytes>
const char* grouped_refusal(const Params& p);
template <int kVectorBytes>
const char* grouped_weight_refusal(const Params& p);
template <int kVectorBytes>
const char* col2im_refusal(const Params& p);

// --- Winograd: 36 products per tile of outputs, float32, 2x2 to 5x5 taps at a phase of the stride
// (cpu/conv_winograd_*)

// Outputs of a tile along an axis: they read 6 inputs.
constexpr int winograd_tile(std::int64_t taps) { return static_cast<int>(7 - taps); }

// Tiles are transformed and multiplied about kBlockTiles at a time, or a few times as many, dilated windows'
// in multiples of it; up to kFewTiles, filters are transformed where they are used.
inline constexpr std::int64_t kBlockTiles = 24, kFewTiles = 96;

// Why a problem cannot, or had better not, be computed so; null when it should.
const char* winograd_refusal(const Params& p);
// The same of a strided window over few channels, by folded_problem.
const char* winograd_folded_refusal(const Params& p);

// The process-wide switch, on unless the environment has CONVNORM_WINOGRAD=0.
bool winograd_enabled();
void set_winograd(bool enabled);

struct Winograd {
  // Forward, or the problems of by input, of which `phases` in turn make the same rows.
  void (*run)(const Dense* problems, std::int64_t count, std::int64_t phases);
  DensePacking packing;  // of run
  void (*by_weight)(const Dense&);
  void (*folded)(const Params&);  // every pass of a strided window
};
extern const Winograd winograd_generic;
#if defined(__x86_64__)
extern const Winograd winograd_avx2;
extern const Winograd winograd_avx512;
#endif

// --- tiles of bfloat16 products, where the processor has them, as AMX's tiles or as AVX-512's pairs
// (cpu/conv_tiles_*)

// With fewer channels to sum over, windows are gathered as patches, where there is one group.
inline constexpr std::int64_t kFewestTileChannels = 16;

// Why a problem is not computed so; null when it is.
const char* tiles_refusal(const Params& p);

struct Tiles {
  void (*run)(const Dense&);
  DensePacking packing;  // of run
  void (*by_input)(const Params&);
  void (*by_weight)(const Dense&);
};
#if defined(__x86_64__)
extern const Tiles tiles_avx512bf16;
extern const Tiles tiles_amx;
#endif

// --- depthwise: a filter per channel, so nothing is summed over channels (cpu/conv_depthwise_*)
// ---------------

// Why a problem is not depthwise; null when it is.
inline const char* depthwise_refusal(const Params& p) {
  if (p.groups != p.input.c) return "not depthwise: groups differ from channels";
  if (p.output.c != p.input.c) return "not depthwise: several filters per channel";
  return nullptr;
}

struct Depthwise {
  // Forward, or the problems of by input, of which `phases` in turn make the same rows.
  void (*run)(const Dense* problems, std::int64_t count, std::int64_t phases);
  void (*by_weight)(const Dense&);
};
extern const Depthwise depthwise_generic;
#if defined(__x86_64__)
extern const Depthwise depthwise_avx2;
extern const Depthwise depthwise_avx512;
#endif

// --- on CUDA (cuda/): plain multiply-adds, the baseline

CONVNORM_CUDA_KERNEL void igemm_cuda(const Params& p);         // forward and by input
CONVNORM_CUDA_KERNEL void igemm_weight_cuda(const Params& p);  // by weight, in p.workspace
CONVNORM_CUDA_KERNEL void direct_cuda(const Params& p);        // every pass, few channels per group
CONVNORM_CUDA_KERNEL void bias_gradient_cuda(const Params& p);
// Depthwise: 16 bytes of channels per thread, or one channel and any strides; by weight in p.workspace.
CONVNORM_CUDA_KERNEL void depthwise_channels_cuda(const Params& p);
CONVNORM_CUDA_KERNEL void depthwise_rows_cuda(const Params& p);
CONVNORM_CUDA_KERNEL void depthwise_channels_weight_cuda(const Params& p);
CONVNORM_CUDA_KERNEL void depthwise_rows_weight_cuda(const Params& p);

}  // namespace convnorm::conv
