// Kernel bodies included below this line are compiled for AVX-512 with bfloat16, and AMX: 64-byte vectors,
// and tiles of 16 rows of 64 bytes. See target_avx2.h for the order of includes.
#include "cpu/vec_includes.h"
#pragma GCC target( \
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#define CONVNORM_VECTOR_BYTES 64
#define CONVNORM_ISA_TAG ::convnorm::Isa::amx
