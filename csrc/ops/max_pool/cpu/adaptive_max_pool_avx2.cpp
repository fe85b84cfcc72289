#if defined(__x86_64__)
#include "ops/max_pool/adaptive_max_pool.h"

#include "cpu/target_avx2.h"

#include "ops/max_pool/cpu/adaptive_max_pool_kernel.h"
#include "ops/max_pool/cpu/adaptive_max_pool_spread.h"

namespace convnorm::max_pool {
const AdaptiveKernels adaptive_avx2{adaptive_channels, adaptive_planes, spread_channels, nullptr};
}  // namespace convnorm::max_pool
#endif
