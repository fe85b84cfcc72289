// The passes over a tensor that batch norm on CUDA is made of; group norm is made of them too. Each takes of
// its Params the tensors, dtype, rows, eps and relu, and the per-channel values in `at`. With a plan of
// several images, channels are counted through all of them.
#pragma once

#include "cuda/launch.h"
#include "ops/batch_norm/cuda/batch_norm_plan.h"

namespace convnorm::batch_norm {

// What a block leaves of a piece for each channel: mean and sum of squares about it; sum g and sum g (x -
// hi).
using Piece = cuda::Piece;

// The backward's terms: x' = scale g - level - slope xhat, where they are not yet times scale if `unscaled`.
struct Terms {
  ChannelRef level, slope;
  bool unscaled = false;
};

void statistics_pass(const cuda::OnDevice& device, const Forward& p, const cuda::Plan& plan, Piece* pieces);
void apply_pass(const cuda::OnDevice& device, const Forward& p, const cuda::Plan& plan);
void sums_pass(const cuda::OnDevice& device, const Backward& p, const cuda::Plan& plan, Piece* pieces);
void gradients_pass(const cuda::OnDevice& device, const Backward& p, const cuda::Plan& plan,
                    const Terms& terms);

}  // namespace convnorm::batch_norm
