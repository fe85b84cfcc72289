#include "ops/batch_norm/batch_norm.h"
#if defined(__x86_64__)
#include "cpu/target_avx2.h"
#include "cpu/vec.h"
#include "ops/batch_norm/cpu/batch_norm_kernel.h"

namespace convnorm::batch_norm {
const Kernels kernels_avx2{&run_forward<PlanesForward>, &run_forward<RowsForward>,
                           &run_backward<PlanesBackward>, &run_backward<RowsBackward>};
}
#endif
