// Which element of an image a thread has: channels first where they are innermost in memory, else columns. 32
// bits within an image, 64 between images. Plain C++, tested by the host.
#pragma once

#include "common/window.h"
#include "cuda/divide.h"

namespace convnorm::cuda {

inline constexpr int kImageThreads = 256;

struct Order {
  bool channels_first;
  Divider size[3];      // of all but the last
  std::uint32_t count;  // vectors of an image

  CONVNORM_HD void place(std::uint32_t i, int& c, int (&at)[3]) const {
    std::uint32_t rest = size[0].split(i);
    const std::uint32_t first = i;
    std::uint32_t last = size[1].split(rest);
    const std::uint32_t second = rest;
    const std::uint32_t fourth = size[2].split(last);
    const std::uint32_t third = last;
    c = static_cast<int>(channels_first ? first : fourth);
    at[2] = static_cast<int>(channels_first ? second : first);
    at[1] = static_cast<int>(channels_first ? third : second);
    at[0] = static_cast<int>(channels_first ? fourth : third);
  }
  CONVNORM_HD std::uint32_t blocks() const { return (count + kImageThreads - 1) / kImageThreads; }
};

inline Order order_of(const Dims& size, std::int64_t vectors, bool channels_first) {
  const std::int64_t first[] = {vectors, size[2], size[1]}, then[] = {size[2], size[1], size[0]};
  Order o{channels_first, {}, static_cast<std::uint32_t>(vectors * size[0] * size[1] * size[2])};
  for (int d = 0; d < 3; ++d) o.size[d] = Divider((channels_first ? first : then)[d]);
  return o;
}

// Channels are dense and every vector of them lies on 16 bytes.
inline bool in_vectors(std::int64_t n, const Strides& s, const Dims& size, int vector) {
  bool fits = s.c == 1 && (n == 1 || s.n % vector == 0);
  for (int d = 0; d < kSpatial; ++d) fits = fits && (size[d] == 1 || s.s[d] % vector == 0);
  return fits;
}

}  // namespace convnorm::cuda
