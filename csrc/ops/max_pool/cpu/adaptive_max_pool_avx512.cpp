#if defined(__x86_64__)
#include "ops/max_pool/adaptive_max_pool.h"

#include "cpu/target_avx512.h"

#include "ops/max_pool/cpu/adaptive_max_pool_kernel.h"
#include "ops/max_pool/cpu/adaptive_max_pool_scatter.h"
#include "ops/max_pool/cpu/adaptive_max_pool_spread.h"

namespace convnorm::max_pool {
const AdaptiveKernels adaptive_avx512{adaptive_channels, adaptive_planes, spread_channels, scatter_channels};
}  // namespace convnorm::max_pool
#endif
