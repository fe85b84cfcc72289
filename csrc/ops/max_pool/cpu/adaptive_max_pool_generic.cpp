#include "ops/max_pool/adaptive_max_pool.h"

#include "cpu/target_generic.h"

#include "ops/max_pool/cpu/adaptive_max_pool_kernel.h"
#include "ops/max_pool/cpu/adaptive_max_pool_spread.h"

namespace convnorm::max_pool {
const AdaptiveKernels adaptive_generic{adaptive_channels, adaptive_planes, spread_channels, nullptr};
}  // namespace convnorm::max_pool
