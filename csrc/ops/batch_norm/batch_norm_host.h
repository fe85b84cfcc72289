// What the host files of batch norm share: checks, allocation, and Params from checked tensors.
#pragma once

#include "common/channel_vector.h"
#include "ops/batch_norm/batch_norm.h"

namespace convnorm::batch_norm {

// input's shape and dtype.
void check_input(const char* op, const Tensor& input);

// torch allows zero in evaluation only.
void check_eps(const char* op, double eps, bool train);

// One value has no variance: torch's words.
void check_values(const Forward& p, const Tensor& input);

// A pair of float64 values per channel, contiguous: (2, channels).
void check_pairs(const char* op, const char* name, const Tensor& t, const Tensor& input);
Tensor empty_pairs(const Tensor& input);

// The tensor as kernels on its device take it, when the result is dense in input's layout.
Tensor like_result(const Tensor& t, const Tensor& input);
OptTensor like_result(const OptTensor& t, const Tensor& input);

// Empty tensors keep their strides, as in torch; others are dense in the layout they ask for.
Tensor dense_like(const Tensor& t);

// A result like input that `view` then points to; empty when it is not wanted.
Tensor result_like(const Tensor& input, bool wanted, NormView& view);

// The gradient of an affine parameter, of its dtype, or input's when it was None; empty when it is not
// wanted.
Tensor affine_like(const Tensor& input, const OptTensor& parameter, bool wanted);

// What to do about statistics is left to the caller. Without output there is nothing to normalise.
Forward forward_params(const char* op, const Tensor& input, const OptTensor& residual,
                       const OptTensor& output, const ChannelVector& weight, const ChannelVector& bias,
                       double eps, bool relu);

// The kernel writes them to `stats`; those of an empty batch, which no kernel sees, are written here.
void take_statistics(Forward& p, Tensor& stats);

// Checks its tensors. What is wanted, and where it goes, is left to the caller.
Backward backward_params(const char* op, const Tensor& grad_output, const Tensor& input,
                         const OptTensor& output, const ChannelVector& weight, const ChannelVector& bias,
                         const Tensor& stats, double eps, bool relu);

// Where kernels on CUDA find the pair of float64 values per channel.
void point_at(ChannelRef& first, ChannelRef& second, const Tensor& pairs);

// Running statistics on CUDA.
void update_on_device(const Update& p);

// By the first kernel that accepts, unless there is nothing to compute; `op` names the ordered list.
void run(const char* op, const Forward& p);
void run(const char* op, const Backward& p);

}  // namespace convnorm::batch_norm
