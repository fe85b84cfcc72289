#include "cpu/isa.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "common/check.h"

namespace convnorm {
namespace {

#if defined(__x86_64__) && defined(__linux__)
// Tiles are 8 KB of state that a process asks for before it uses them; threads inherit the permission.
bool tiles_permitted() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

bool has_amx() {
  constexpr unsigned kTile = 1u << 24, kTileBf16 = 1u << 22;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) && (d & kTileBf16) && tiles_permitted();
}
#else
bool has_amx() { return false; }
#endif

#if defined(__x86_64__)
// By cpuid: older compilers do not know the name.
bool has_avx512bf16() {
  constexpr unsigned kAvx512Bf16 = 1u << 5;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvx512Bf16);
}
#endif

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!avx2) return Isa::generic;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512) return Isa::avx2;
  if (!has_avx512bf16()) return Isa::avx512;
  return has_amx() ? Isa::amx : Isa::avx512bf16;
#else
  return Isa::generic;
#endif
}

Isa parse(const char* text) {
  const Isa most = supported_isa();
  // Pairs of bfloat16 were right where they ran, on a processor that has them slower than its FMAs; until
  // they are measured on others they are for the asking.
  if (std::strcmp(text, "auto") == 0) return most == Isa::avx512bf16 ? Isa::avx512 : most;
  for (Isa isa : {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx}) {
    if (std::strcmp(text, name(isa)) != 0) continue;
    check(isa <= most, "CONVNORM_ISA: ", text, " asked for, but this processor supports only ", name(most));
    return isa;
  }
  throw std::invalid_argument(convnorm::text("CONVNORM_ISA: got '", text,
                                             "', must be auto, generic, avx2, avx512, avx512bf16 or amx"));
}

std::atomic<int>& current() {
  static std::atomic<int> isa{-1};
  return isa;
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512bf16:
      return "avx512bf16";
    case Isa::amx:
      return "amx";
    default:
      return "generic";
  }
}

bool scatter_is_fast() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return !__builtin_cpu_is("amd");
#else
  return true;
#endif
}

std::int64_t l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const std::int64_t told = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  const std::int64_t told = 0;
#endif
  return told > 0 ? told : 1 << 20;
}

Isa supported_isa() {
  static const Isa isa = detect();
  return isa;
}

Isa active_isa() {
  int isa = current().load(std::memory_order_relaxed);
  if (isa < 0) {
    const char* asked = std::getenv("CONVNORM_ISA");
    isa = static_cast<int>(parse(asked && *asked ? asked : "auto"));
    current().store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

void set_isa(const char* name) { current().store(static_cast<int>(parse(name)), std::memory_order_relaxed); }

}  // namespace convnorm
