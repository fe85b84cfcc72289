#if defined(__x86_64__)
#include "cpu/ceiling.h"

#include "cpu/target_avx512.h"
#include "cpu/vec.h"
#include "cpu/ceiling_kernel.h"

namespace convnorm {
extern const FmaLoop fma_loop_avx512 = fma_loop;
}
#endif
