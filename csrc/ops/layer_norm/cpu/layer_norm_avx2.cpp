#include "ops/layer_norm/layer_norm.h"
#if defined(__x86_64__)
#include "cpu/target_avx2.h"
#include "cpu/vec.h"
#include "ops/layer_norm/cpu/layer_norm_kernel.h"

namespace convnorm::layer_norm {
const Kernels kernels_avx2{&run_forward, &run_backward<false>, &run_backward<true>};
}
#endif
