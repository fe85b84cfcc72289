// Kernel bodies included below this line are compiled for the baseline of the platform (SSE2, NEON): 16-byte
// vectors.
#include "cpu/vec_includes.h"
#define CONVNORM_VECTOR_BYTES 16
#define CONVNORM_ISA_TAG ::convnorm::Isa::generic
