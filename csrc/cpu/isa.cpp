#include "cpu/isa.h"

#if defined(__linux__)
#include <unistd.h>
#endif

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "common/check.h"

namespace convnorm {
namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!avx2) return Isa::generic;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return avx512 ? Isa::avx512 : Isa::avx2;
#else
  return Isa::generic;
#endif
}

Isa parse(const char* text) {
  const Isa most = supported_isa();
  if (std::strcmp(text, "auto") == 0) return most;
  for (Isa isa : {Isa::generic, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(text, name(isa)) != 0) continue;
    check(isa <= most, "CONVNORM_ISA: ", text, " asked for, but this processor supports only ", name(most));
    return isa;
  }
  throw std::invalid_argument(
      convnorm::text("CONVNORM_ISA: got '", text, "', must be auto, generic, avx2 or avx512"));
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
