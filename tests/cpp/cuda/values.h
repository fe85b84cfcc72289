// What the tests of kernels for CUDA share: values of any dtype, and buffers with nothing to spare.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/dtype.h"
#include "cuda/intrinsics.cuh"

namespace convnorm {

inline double wide(double x) { return x; }
inline double wide(float x) { return x; }
inline double wide(bf16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }
inline double wide(f16 x) { return static_cast<double>(std::bit_cast<_Float16>(x.bits)); }

template <class T>
T narrow(double x) {
  if constexpr (sizeof(T) > 2)
    return static_cast<T>(x);
  else if constexpr (std::is_same_v<T, f16>)
    return {static_cast<std::uint16_t>(cuda::pack_f16(static_cast<float>(x), 0))};
  else
    return {static_cast<std::uint16_t>(cuda::pack_bf16(static_cast<float>(x), 0))};
}

template <class T>
std::vector<double> wide(const std::vector<T>& v) {
  std::vector<double> all;
  for (const T& x : v) all.push_back(wide(x));
  return all;
}

// Half the distance between 1 and the next value, relative: what one rounding costs.
inline double rounding(DType t) {
  return t == DType::f64 ? 0x1p-53 : t == DType::f32 ? 0x1p-24 : t == DType::f16 ? 0x1p-11 : 0x1p-8;
}

// Aligned to 16 bytes as torch's tensors are, with the sanitizer's fence behind the last element. Filled with
// a pattern that is NaN, so that what is not written shows.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t n = 0) : values_(n) {
    if (n > 0) std::memset(values_.data(), 0xff, n * sizeof(T));
  }
  explicit Buffer(std::vector<T> values) : values_(std::move(values)) {}
  T* data() { return values_.empty() ? nullptr : values_.data(); }
  const std::vector<T>& all() const { return values_; }

 private:
  std::vector<T> values_;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Values, where NaN is NaN of whatever bits.
template <class T>
bool same_values(const std::vector<T>& a, const std::vector<T>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (wide(a[i]) != wide(b[i]) && !(std::isnan(wide(a[i])) && std::isnan(wide(b[i])))) return false;
  return a.size() == b.size();
}

}  // namespace convnorm
