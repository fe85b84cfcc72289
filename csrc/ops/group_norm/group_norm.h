// Group norm: the contract between the host file and its kernels. Instance norm is groups == channels.
//
// The channels of an image are split into `groups` of D = channels/groups. Forward, per image n and group,
// over its M = D * inner values:
//   mean = 1/M sum x         var = 1/M sum (x - mean)^2          r = 1 / sqrt(var + eps)
//   xhat = (x - mean) r      y = weight_c xhat + bias_c
// The mean is carried in double; x - mean is taken as (x - center) with center the mean rounded and what the
// rounding cut off in the bias: a float mean alone would cost |mean|/std digits.
//
// Backward, with g = grad_output; G_nc = sum g and P_nc = sum g xhat over the inner extent of (n, c):
//   grad_bias_c = sum_n G_nc     grad_weight_c = sum_n P_nc
//   grad_x = r (weight_c g - 1/M sum_c weight_c G_nc - xhat 1/M sum_c weight_c P_nc),  sums over the group
//
// Statistics and sums are double; elements are computed in compute_t<T> (common/dtype.h).
#pragma once

#include <cstdint>

#include "common/channel_ref.h"
#include "common/dtype.h"
#include "common/kernel_row.h"

namespace convnorm::group_norm {

// Tensors are dense: [batch, channels, inner] in planes, [batch, inner, channels] in rows.
struct Shape {
  DType dtype = DType::f32;
  bool rows = false;
  std::int64_t batch = 0, channels = 0, groups = 1, inner = 1;
  Device device;
  std::int64_t depth() const { return channels / groups; }
  std::int64_t group_values() const { return depth() * inner; }
};

struct Forward : Shape {
  double eps = 0;
  const void* x = nullptr;
  void* out = nullptr;
  const double* weight = nullptr;  // [channels] or null: ones
  const double* bias = nullptr;    // [channels] or null: zeros
  double* mean = nullptr;          // [batch, groups]
  double* var = nullptr;           // [batch, groups]; biased
  ChannelRef weight_at, bias_at;   // in place of weight and bias on CUDA
  void* workspace = nullptr;
};

struct Backward : Shape {
  double eps = 0;
  const void* grad_output = nullptr;
  const void* x = nullptr;
  const double* weight = nullptr;
  const double* mean = nullptr;
  const double* var = nullptr;
  void* grad_input = nullptr;     // null when it is not wanted
  double* grad_weight = nullptr;  // [channels]; both null when neither is wanted
  double* grad_bias = nullptr;
  ChannelRef weight_at, grad_weight_at,
      grad_bias_at;  // in place of them on CUDA; without data when not wanted
  void* workspace = nullptr;
};

inline const char* refuse_rows(const Shape& p) {
  return p.rows ? "channels are innermost: the rows method is for them" : nullptr;
}
inline const char* refuse_planes(const Shape& p) {
  return p.rows ? nullptr : "channels are not innermost: the planes method is for them";
}

template <class Params>
using Kernel = KernelRow<Params>;

// What one instruction set exports.
struct Kernels {
  void (*forward_planes)(const Forward&);
  void (*forward_rows)(const Forward&);
  void (*backward_planes)(const Backward&);
  void (*backward_rows)(const Backward&);
};
extern const Kernels kernels_generic;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// On CUDA (cuda/).
CONVNORM_CUDA_KERNEL void forward_cuda(const Forward& p);
CONVNORM_CUDA_KERNEL void backward_cuda(const Backward& p);

// Textbook loops in double: slow, and what the others are read against.
void forward_reference(const Forward& p);
void backward_reference(const Backward& p);

}  // namespace convnorm::group_norm
