// What this machine can do at most, measured: benchmarks state every figure as a share of it.
#pragma once

#include <cstdint>

namespace convnorm {

// float32 GFLOP/s of multiply-adds that stay in registers, on the active instruction set.
double fma_gflops(int threads);

// GB/s, read plus written, of copying an array much larger than the caches.
double copy_gbps(int threads);

// rounds * kFmasPerRound vector multiply-adds; the result only keeps the compiler from dropping them.
using FmaLoop = float (*)(std::int64_t rounds);
inline constexpr int kFmasPerRound =
    12;  // chains: latency 4 times 2 per cycle needs 8, and 16 registers hold 12
extern const FmaLoop fma_loop_generic;
extern const FmaLoop fma_loop_avx2;
extern const FmaLoop fma_loop_avx512;

}  // namespace convnorm
