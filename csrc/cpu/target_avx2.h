// Kernel bodies included below this line are compiled for AVX2 + FMA + F16C: 32-byte vectors.
// Contract headers and std headers must come first: an inline function of theirs compiled wide here could be
// picked by the linker for baseline code.
#include "cpu/vec_includes.h"
#pragma GCC target("avx2,fma,f16c")
#define CONVNORM_VECTOR_BYTES 32
#define CONVNORM_ISA_TAG ::convnorm::Isa::avx2
