// What layer and group norm ask of their operands, and their affine parameters as contiguous memory: kernels
// widen them.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "common/tensor.h"

namespace convnorm {

// "[2, 3]", as torch prints sizes.
inline std::string list_text(const Ints& sizes) {
  std::string out = "[";
  for (std::size_t i = 0; i < sizes.size(); ++i) out += (i ? ", " : "") + std::to_string(sizes[i]);
  return out + "]";
}

// The tensor itself, or its values in the order of its dimensions; aligned on CUDA.
inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? operand(t, Layout::contiguous) : torch::stable::contiguous(t);
}

// A parameter has input's dtype or, for 16-bit input, float32.
inline void check_param_dtype(const char* op, const char* name, const Tensor& t, const Tensor& input) {
  const ScalarType want = input.scalar_type(), got = t.scalar_type();
  const bool half = want == ScalarType::BFloat16 || want == ScalarType::Half;
  check(got == want || (half && got == ScalarType::Float), op, ": mixed dtype: ", name, " has dtype ",
        dtype_name(got), ", must be ", half ? "float32 or " : "", "input's ", dtype_name(want));
  check_same_device(op, "input", input, name, t);
}

inline void check_stats(const char* op, const Tensor& stats, const Ints& sizes) {
  check(sizes_of(stats) == sizes && stats.is_contiguous() && stats.scalar_type() == ScalarType::Double, op,
        ": stats of size ", SizeOf{stats}, " must be a contiguous float64 tensor of size ", Shape{sizes});
}

class ParamVector {
 public:
  ParamVector(const OptTensor& t, const Tensor& input) : dtype_(float_dtype("norm", "input", input)) {
    if (!t) return;
    held_ = as_contiguous(*t);
    dtype_ = float_dtype("norm", "parameter", *held_);
  }
  const void* data() const { return held_ ? held_->data_ptr() : nullptr; }
  DType dtype() const { return dtype_; }

 private:
  OptTensor held_;
  DType dtype_;
};

// Where the gradient of a parameter goes: contiguous, of its dtype, or input's when it was None.
inline Tensor param_like(const OptTensor& param, const Tensor& input, const Ints& sizes) {
  return empty(input, sizes, Layout::contiguous, param ? param->scalar_type() : input.scalar_type());
}

// Rounds doubles into a contiguous tensor.
inline void store(const Tensor& t, const double* values) {
  const std::int64_t n = t.numel();
  const auto as = [&](auto* to) {
    for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<std::remove_pointer_t<decltype(to)>>(values[i]);
  };
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return as(view(t).as<double>());
    case ScalarType::BFloat16:
      return as(view(t).as<c10::BFloat16>());
    case ScalarType::Half:
      return as(view(t).as<c10::Half>());
    default:
      return as(view(t).as<float>());
  }
}

}  // namespace convnorm
