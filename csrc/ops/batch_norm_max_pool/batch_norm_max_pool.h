// Batch norm, relu and max pooling in one pass: the contract between the host file and its kernels.
//
//   forward    y = act(batch_norm(x))        out, arg = max_pool(y)
//   backward   g = max_pool's gradient of y  grad_x, grad_weight, grad_bias = batch norm's backward of x and
//   g
//
// as in ops/batch_norm/batch_norm.h and ops/max_pool/max_pool.h, bit for bit: y and g are made by the kernels
// of these rooms, a part at a time, in scratch memory that stays in the caches, and neither is ever whole. So
// x is what the backward keeps, and one byte for each pooled value: relu's mask follows from x. A maximum of
// zero that relu cut gets no gradient, wherever in its window it was found.
#pragma once

#include <cstdint>
#include <span>

#include "ops/batch_norm/batch_norm.h"
#include "ops/max_pool/max_pool.h"

namespace convnorm::batch_norm_max_pool {

struct Forward {
  batch_norm::Forward norm;  // of x; it has no out
  max_pool::Params pool;     // of y: the strides of its input are not read
  void* output = nullptr;
  void* argmax = nullptr;
};

struct Backward {
  batch_norm::Backward norm;          // of x; it has no grad_output
  max_pool::Params pool;              // of g: the strides of its input are not read
  const void* grad_output = nullptr;  // dense in x's layout, as argmax
  const void* argmax = nullptr;
};

std::span<const KernelRow<Forward>> forward_kernels();
std::span<const KernelRow<Backward>> backward_kernels();

// The walks (cpu/), with batch norm by the kernels of one instruction set and pooling by its own list.
void forward_planes(const Forward& p, const batch_norm::Kernels& norm);
void forward_rows(const Forward& p, const batch_norm::Kernels& norm);
void backward_planes(const Backward& p, const batch_norm::Kernels& norm);
void backward_rows(const Backward& p, const batch_norm::Kernels& norm);

}  // namespace convnorm::batch_norm_max_pool
