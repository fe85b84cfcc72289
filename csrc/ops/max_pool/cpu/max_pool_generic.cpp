#include "ops/max_pool/max_pool.h"

#include "cpu/target_generic.h"

#include "ops/max_pool/cpu/max_pool_kernel.h"

namespace convnorm::max_pool {
const Kernels kernels_generic{forward_planes,   forward_pairs,     forward_rows,
                              forward_channels, backward_planes,   backward_pairs,
                              backward_rows,    backward_channels, backward_tiles};
}  // namespace convnorm::max_pool
