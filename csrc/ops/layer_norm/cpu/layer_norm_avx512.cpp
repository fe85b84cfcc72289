#include "ops/layer_norm/layer_norm.h"

#if defined(__x86_64__)
#include "cpu/target_avx512.h"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms inside gcc's own avx512 headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "cpu/vec.h"
#include "ops/layer_norm/cpu/layer_norm_kernel.h"

namespace convnorm::layer_norm {
const Kernels kernels_avx512{&run_forward, &run_backward<false>, &run_backward<true>};
}
#endif
