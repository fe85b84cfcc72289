#include "cpu/ceiling.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "common/parallel.h"
#include "cpu/isa.h"

namespace convnorm {
namespace {

struct Loop {
  FmaLoop run;
  int lanes;
};

Loop active_loop() {
#if defined(__x86_64__)
  if (active_isa() >= Isa::avx512) return {fma_loop_avx512, 16};
  if (active_isa() == Isa::avx2) return {fma_loop_avx2, 8};
#endif
  return {fma_loop_generic, 4};
}

// The shortest of several runs, in nanoseconds (so that work / it is in billions per second).
template <class F>
double shortest(int runs, F&& f) {
  double best = 1e30;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count());
  }
  return best;
}

}  // namespace

double fma_gflops(int threads) {
  const Loop loop = active_loop();
  constexpr std::int64_t kRounds = 2'000'000;
  std::vector<float> keep(threads);
  const double time = shortest(30, [&] {
    parallel_for(threads, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) keep[i] = loop.run(kRounds);
    });
  });
  return 2.0 * threads * kRounds * kFmasPerRound * loop.lanes / time;
}

double copy_gbps(int threads) {
  constexpr std::int64_t kBytes = std::int64_t(128) << 20;
  std::vector<char> from(kBytes, 1), to(kBytes);
  const double time = shortest(10, [&] {
    parallel_for(threads, 1, [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t first = kBytes / threads * begin;
      std::memcpy(to.data() + first, from.data() + first, kBytes / threads * (end - begin));
    });
  });
  return 2.0 * kBytes / time;
}

}  // namespace convnorm
