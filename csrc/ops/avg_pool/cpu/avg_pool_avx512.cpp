#if defined(__x86_64__)
#include "ops/avg_pool/avg_pool.h"

#include "cpu/target_avx512.h"

#include "ops/avg_pool/cpu/avg_pool_kernel.h"

namespace convnorm::avg_pool {
const Kernels kernels_avx512{forward_runs,      forward_channels, forward_rows,   forward_planes,
                             backward_channels, backward_rows,    backward_planes};
}  // namespace convnorm::avg_pool
#endif
