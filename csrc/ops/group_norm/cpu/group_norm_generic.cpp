#include "ops/group_norm/group_norm.h"

#include "cpu/target_generic.h"
#include "cpu/vec.h"
#include "ops/group_norm/cpu/group_norm_kernel.h"

namespace convnorm::group_norm {
const Kernels kernels_generic{&run<PlanesForward, Forward>, &run<RowsForward, Forward>,
                              &run<PlanesBackward, Backward>, &run<RowsBackward, Backward>};
}
