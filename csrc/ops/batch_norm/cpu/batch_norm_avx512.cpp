#include "ops/batch_norm/batch_norm.h"

#if defined(__x86_64__)
#include "cpu/target_avx512.h"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms inside gcc's own avx512 headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "cpu/vec.h"
#include "ops/batch_norm/cpu/batch_norm_kernel.h"

namespace convnorm::batch_norm {
const Kernels kernels_avx512{&run_forward<PlanesForward>, &run_forward<RowsForward>,
                             &run_backward<PlanesBackward>, &run_backward<RowsBackward>};
}
#endif
