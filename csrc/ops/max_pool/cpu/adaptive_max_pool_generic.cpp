#include "ops/max_pool/adaptive_max_pool.h"

#include "cpu/target_generic.h"

#include "ops/max_pool/cpu/adaptive_max_pool_kernel.h"

namespace convnorm::max_pool {
const AdaptiveKernels adaptive_generic{adaptive_channels, adaptive_planes};
}  // namespace convnorm::max_pool
