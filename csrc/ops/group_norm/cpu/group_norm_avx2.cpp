#include "ops/group_norm/group_norm.h"
#if defined(__x86_64__)
#include "cpu/target_avx2.h"
#include "cpu/vec.h"
#include "ops/group_norm/cpu/group_norm_kernel.h"

namespace convnorm::group_norm {
const Kernels kernels_avx2{&run<PlanesForward, Forward>, &run<RowsForward, Forward>,
                           &run<PlanesBackward, Backward>, &run<RowsBackward, Backward>};
}
#endif
