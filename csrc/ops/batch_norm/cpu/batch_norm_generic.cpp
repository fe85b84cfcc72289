#include "ops/batch_norm/batch_norm.h"

#include "cpu/target_generic.h"
#include "cpu/vec.h"
#include "ops/batch_norm/cpu/batch_norm_kernel.h"

namespace convnorm::batch_norm {
const Kernels kernels_generic{&run_forward<PlanesForward>, &run_forward<RowsForward>,
                              &run_backward<PlanesBackward>, &run_backward<RowsBackward>};
}
