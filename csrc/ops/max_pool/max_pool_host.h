// What the host files of max pooling by a window share: checks, allocation, and Params from checked tensors.
#pragma once

#include <string>

#include "common/tensor.h"
#include "ops/max_pool/max_pool.h"

namespace convnorm::max_pool {

// A forward problem with its results; `record` is 0 (nothing), 1 (offsets) or 2 (indices).
struct Pooled {
  Params p;
  Tensor output, argmax;
};
Pooled pooled(const std::string& op, const Tensor& input, const Ints& window, bool ceil_mode,
              std::int64_t record);

// What backward and gather share: the problem that `argmax` was recorded in.
Params recorded_problem(const std::string& op, const Ints& input_size, const Ints& window,
                        const Tensor& argmax);

// grad_output has argmax's size and device; sets dtype and strides.
void take_gradient(const std::string& op, Params& p, const Tensor& grad_output, const Tensor& argmax);

}  // namespace convnorm::max_pool
