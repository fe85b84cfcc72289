// A unit test in few lines: EXPECT counts, says what failed, and finish() is the exit status.
#pragma once

#include <cstdint>
#include <cstdio>

inline int failures = 0;

#define EXPECT(ok, ...)                                    \
  do {                                                     \
    if (!(ok) && ++failures <= 20) {                       \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #ok); \
      std::printf(__VA_ARGS__);                            \
      std::printf("\n");                                   \
    }                                                      \
  } while (false)

inline int finish() {
  if (failures) std::printf("%d failed\n", failures);
  return failures != 0;
}

// Small repeatable random numbers (xorshift).
struct Random {
  std::uint64_t state = 88172645463325252ull;
  std::int64_t operator()(std::int64_t low, std::int64_t high) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return low + static_cast<std::int64_t>(state % static_cast<std::uint64_t>(high - low + 1));
  }
};
