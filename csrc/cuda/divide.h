// Division by a number that is known when a kernel is started: a multiplication and a shift in place of some
// twenty instructions (Granlund and Montgomery 1994). Plain C++, tested by the host.
#pragma once

#include <cstdint>

#include "common/device.h"

namespace convnorm::cuda {

// n / d for 0 <= n < 2^31, 1 <= d < 2^31.
class Divider {
 public:
  Divider() = default;
  explicit Divider(std::int64_t d) : divisor_(static_cast<std::uint32_t>(d)) {
    while ((std::uint64_t{1} << shift_) < divisor_) ++shift_;
    const std::uint64_t over = (std::uint64_t{1} << shift_) - divisor_;
    magic_ = static_cast<std::uint32_t>((over << 32) / divisor_ + 1);
  }
  CONVNORM_HD std::uint32_t divide(std::uint32_t n) const {
    const auto high = static_cast<std::uint32_t>(static_cast<std::uint64_t>(n) * magic_ >> 32);
    return (high + n) >> shift_;
  }
  CONVNORM_HD std::uint32_t divisor() const { return divisor_; }

  // n / d; what is left is put in n.
  CONVNORM_HD std::uint32_t split(std::uint32_t& n) const {
    const std::uint32_t quotient = divide(n);
    n -= quotient * divisor_;
    return quotient;
  }

 private:
  std::uint32_t divisor_ = 1, magic_ = 1, shift_ = 0;
};

}  // namespace convnorm::cuda
