// Instruction sets that kernels are compiled for, and which of them this process uses.
#pragma once

#include <cstdint>

namespace convnorm {

// Each has all of those before it. The last two, pairs of bfloat16 products in vectors and in tiles (AMX),
// are for convolutions of bfloat16 only: all other kernels are those of avx512.
enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3, amx = 4 };

const char* name(Isa isa);

// What the processor and the operating system support.
Isa supported_isa();

// Whether scatter instructions, if there are any, beat storing one element after the other: AMD's take a
// fifth longer.
bool scatter_is_fast();

// Of the second level cache of a core; 1 MB where the system does not tell.
std::int64_t l2_bytes();

// What is used: the widest supported one that has been proven on hardware, or what CONVNORM_ISA or set_isa
// asked for. Asking for more than the processor has is an error.
Isa active_isa();
void set_isa(const char* name);  // "auto", "generic", "avx2", "avx512", "avx512bf16", "amx"

}  // namespace convnorm
