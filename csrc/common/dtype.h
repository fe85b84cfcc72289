// The element types of convnorm and the one place that switches over them.
//
// 16-bit values are storage only: kernels widen them to float while loading and round once while storing.
#pragma once

#include <cstdint>

namespace convnorm {

struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

enum class DType : std::uint8_t { f32, f64, bf16, f16 };

inline const char* name(DType t) {
  switch (t) {
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
  }
  return "unknown";
}

inline int bytes(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

// The type sums are kept in: double for double, float for everything else.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using compute_t = typename ComputeType<T>::type;

// Calls f(T{}) with the C++ type of t. The functor has one type per call site, so each op is switched once.
template <class F>
auto dispatch(DType t, F&& f) {
  switch (t) {
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
    default:
      return f(float{});
  }
}

}  // namespace convnorm
