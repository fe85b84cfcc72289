// Instruction sets that kernels are compiled for, and which of them this process uses.
#pragma once

#include <cstdint>

namespace convnorm {

enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2 };

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
void set_isa(const char* name);  // "auto", "generic", "avx2", "avx512"

}  // namespace convnorm
