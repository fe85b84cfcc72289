// Batch norm: the contract between the host file and its kernels.
//
// Forward, per channel, over the M = n * inner values of the batch (train) or with given statistics (eval):
//   mean = 1/M sum x         var = 1/M sum (x - mean)^2          r = 1 / sqrt(var + eps)
//   xhat = (x - mean) r      y = weight xhat + bias              out = act(y + residual),  act = relu or
//   identity
// The mean is carried in double; x - mean is taken as (x - hi) with the low part of the mean inside the bias,
// because a float mean alone would cost |mean|/std digits.
//
// Backward: g = grad_output, zero where relu cut (out <= 0; recomputed from x when there is no residual).
//   grad_bias = sum g        grad_weight = sum g xhat            grad_residual = g
//   grad_x = weight r (g - grad_bias/M - xhat grad_weight/M)  in training: mean and var depend on x,
//   grad_x = weight r g                                       in evaluation.
//
// Statistics, sums and per-channel parameters are double; elements are computed in compute_t<T>
// (common/dtype.h).
#pragma once

#include <cstdint>
#include <span>

#include "common/channel_ref.h"
#include "common/dtype.h"
#include "common/kernel_row.h"
#include "common/norm_view.h"

namespace convnorm::batch_norm {

// Per-channel values for kernels on CUDA, which read and write them where they are. On the CPU they are the
// doubles of Forward and Backward.
struct PerChannel {
  ChannelRef weight, bias, mean, var, grad_weight, grad_bias;
};

struct Forward {
  DType dtype = DType::f32;
  bool rows = false;  // out is in rows (channels innermost), else in planes; both dense
  bool train = true;
  bool relu = false;
  double eps = 0;
  NormView x, residual, out;       // residual.data may be null; without out.data, statistics are all
  const double* weight = nullptr;  // [channels] or null: ones
  const double* bias = nullptr;    // [channels] or null: zeros
  double* mean = nullptr;          // [channels]; written in training, read in evaluation
  double* var = nullptr;           // [channels]; biased
  std::int64_t of_channels = 0;    // of the tensor that x has some channels of; 0: x has all
  Device device;
  PerChannel at;  // on CUDA, where x, residual and out are dense
  void* workspace = nullptr;
};

// Rows of grad_output that are made when they are wanted: `rows` from `row` on, `channels` from `channel` on.
// In the view rows and channels have the numbers they have in the whole. It serves until the thread asks
// again.
struct GradientRows {
  NormView (*make)(const void* context, std::int64_t row, std::int64_t rows, std::int64_t channel,
                   std::int64_t channels) = nullptr;
  const void* context = nullptr;
};

struct Backward {
  DType dtype = DType::f32;
  bool rows = false;
  bool train = true;
  bool relu = false;
  bool want_input = true;
  bool want_affine = true;  // grad_weight and grad_bias
  bool sums_given = false;  // grad_weight and grad_bias are read: scaled to this batch's share of the whole
  double eps = 0;
  NormView grad_output, x, out;        // out.data is null unless relu is masked by it
  GradientRows made;                   // in place of grad_output, by the rows method
  NormView grad_input, grad_residual;  // grad_residual.data may be null
  const double* weight = nullptr;
  const double* bias = nullptr;
  const double* mean = nullptr;
  const double* var = nullptr;
  double* grad_weight = nullptr;  // [channels]; always there, filled in training or when wanted, or given
  double* grad_bias = nullptr;
  std::int64_t of_channels = 0;  // as of Forward
  Device device;
  PerChannel at;  // on CUDA, where tensors are dense; given sums are already divided by the values they count
  void* workspace = nullptr;
};

// running = (1 - momentum) running + momentum batch, on CUDA; the variance in `batch` is scaled first.
struct Update {
  Device device;
  std::int64_t channels = 0;
  ChannelRef mean, var;           // running; without data there is nothing to do
  const double* batch = nullptr;  // mean, then biased variance
  double momentum = 0, unbiased = 1;
};

inline const char* refuse_rows(bool rows) {
  return rows ? "channels are innermost: the rows method is for them" : nullptr;
}
inline const char* refuse_planes(bool rows) {
  return rows ? nullptr : "channels are not innermost: the planes method is for them";
}

template <class Params>
using Kernel = KernelRow<Params>;

std::span<const Kernel<Forward>> forward_kernels();
std::span<const Kernel<Backward>> backward_kernels();

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
CONVNORM_CUDA_KERNEL void forward_rows_cuda(const Forward& p);
// The same bits in one kernel, where the device holds x in shared memory; else why it does not.
CONVNORM_CUDA_KERNEL void forward_resident_cuda(const Forward& p);
CONVNORM_CUDA_KERNEL const char* resident_refusal_cuda(const Forward& p);
CONVNORM_CUDA_KERNEL void forward_planes_cuda(const Forward& p);
CONVNORM_CUDA_KERNEL void backward_rows_cuda(const Backward& p);
CONVNORM_CUDA_KERNEL void backward_planes_cuda(const Backward& p);
CONVNORM_CUDA_KERNEL void update_cuda(const Update& p);

// Textbook loops in double over any strides: slow, and what the others are read against.
void forward_reference(const Forward& p);
void backward_reference(const Backward& p);

}  // namespace convnorm::batch_norm
