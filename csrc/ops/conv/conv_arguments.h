// Convolution: the checks of what the ops are called with.
#pragma once

#include "common/tensor.h"
#include "ops/conv/conv.h"

namespace convnorm::conv {

// As the ops take it; padding is all low sides, then all high sides.
struct Geometry {
  const Ints &stride, &padding, &dilation;
  std::int64_t groups;
};

struct Args {
  const char* op;
  int spatial;
  Window window;
  std::int64_t groups;
};

// stride, dilation and groups make sense, and there are as many values as spatial dimensions.
Args check_args(const char* op, std::int64_t dim, const Ints& kernel, const Geometry& geometry);

// Sizes of (input, weight) fit each other; returns the size of the output.
Ints check_shapes(const Args& a, const Ints& input, const Ints& weight);

// One dtype and one device.
void check_pair(const char* op, const char* a_name, const Tensor& a, const char* b_name, const Tensor& b);

void check_size(const char* op, const char* name, const Tensor& t, const Ints& want);

// The spatial part of a weight's size.
Ints kernel_of(const Ints& weight);

}  // namespace convnorm::conv
