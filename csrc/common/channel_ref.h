// Per-channel values where they are, in their own dtype: what kernels for CUDA read and write. Torch-free.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace convnorm {

struct ChannelRef {
  void* data = nullptr;  // null: there are none
  DType dtype = DType::f32;
  std::int64_t stride = 1;  // elements between channels
};

}  // namespace convnorm
