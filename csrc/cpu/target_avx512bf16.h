// Kernel bodies included below this line are compiled for AVX-512 with products of pairs of bfloat16.
// See target_avx2.h for the order of includes.
#include "cpu/vec_includes.h"
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#define CONVNORM_VECTOR_BYTES 64
#define CONVNORM_ISA_TAG ::convnorm::Isa::avx512bf16
