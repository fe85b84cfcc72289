#include "ops/layer_norm/layer_norm.h"

#include "cpu/target_generic.h"
#include "cpu/vec.h"
#include "ops/layer_norm/cpu/layer_norm_kernel.h"

namespace convnorm::layer_norm {
const Kernels kernels_generic{&run_forward, &run_backward<false>, &run_backward<true>};
}
