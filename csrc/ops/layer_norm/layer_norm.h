// Layer norm: the contract between the host file and its kernels.
//
// The input is a matrix of `rows` by `size` (the product of normalized_shape). Forward, per row:
//   mean = 1/size sum x      var = 1/size sum (x - mean)^2      r = 1 / sqrt(var + eps)
//   xhat = (x - mean) r      y_i = weight_i xhat_i + bias_i
// The mean is carried in double; x - mean is taken as (x - center) with center the mean rounded, and what the
// rounding cut off is added to xhat: a float mean alone would cost |mean|/std digits.
//
// Backward, with g = grad_output:
//   grad_bias_i = sum over rows g_i      grad_weight_i = sum over rows g_i xhat_i
//   grad_x_i = r (weight_i g_i - 1/size sum_j weight_j g_j - xhat_i 1/size sum_j weight_j g_j xhat_j)
//
// Statistics and the sums over rows are double; elements are computed in compute_t<T> (common/dtype.h).
#pragma once

#include <cstdint>

#include "common/channel_ref.h"
#include "common/dtype.h"
#include "common/kernel_row.h"

namespace convnorm::layer_norm {

struct Forward {
  DType dtype = DType::f32, weight_dtype = DType::f32, bias_dtype = DType::f32;
  std::int64_t rows = 0, size = 0;
  double eps = 0;
  const void* x = nullptr;       // [rows, size], dense like all tensors here
  const void* weight = nullptr;  // [size] or null: ones
  const void* bias = nullptr;    // [size] or null: zeros
  void* out = nullptr;
  double* mean = nullptr;  // [rows]
  double* var = nullptr;   // [rows]; biased
  Device device;
};

struct Backward {
  DType dtype = DType::f32, weight_dtype = DType::f32;
  std::int64_t rows = 0, size = 0;
  double eps = 0;
  const void* grad_output = nullptr;
  const void* x = nullptr;
  const void* weight = nullptr;
  const double* mean = nullptr;
  const double* var = nullptr;
  void* grad_input = nullptr;     // null when it is not wanted
  double* grad_weight = nullptr;  // [size]; both null when neither is wanted
  double* grad_bias = nullptr;
  Device device;
  ChannelRef grad_weight_at, grad_bias_at;  // in place of them on CUDA, in the tensors' own dtype
  void* workspace = nullptr;
};

// Rows longer than this are differentiated column by column: x and grad_output of one row would not stay in
// L2.
inline constexpr std::int64_t kLongRow = 16384;

inline const char* refuse_long(const Backward& p) {
  return p.size > kLongRow ? "rows of more than 16384 values: the columns method is for them" : nullptr;
}
inline const char* refuse_short(const Backward& p) {
  return p.size > kLongRow ? nullptr : "rows of at most 16384 values: the rows method is for them";
}

template <class Params>
using Kernel = KernelRow<Params>;

// What one instruction set exports.
struct Kernels {
  void (*forward)(const Forward&);
  void (*backward_rows)(const Backward&);
  void (*backward_columns)(const Backward&);
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

}  // namespace convnorm::layer_norm
