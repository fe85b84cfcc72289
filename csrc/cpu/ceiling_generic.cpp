#include "cpu/ceiling.h"

#include "cpu/target_generic.h"
#include "cpu/vec.h"
#include "cpu/ceiling_kernel.h"

namespace convnorm {
extern const FmaLoop fma_loop_generic = fma_loop;
}
