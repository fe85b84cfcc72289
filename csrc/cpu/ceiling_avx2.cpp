#if defined(__x86_64__)
#include "cpu/ceiling.h"

#include "cpu/target_avx2.h"
#include "cpu/vec.h"
#include "cpu/ceiling_kernel.h"

namespace convnorm {
extern const FmaLoop fma_loop_avx2 = fma_loop;
}
#endif
