// A per-channel tensor (weight, bias, running statistics), checked. On the CPU as doubles, read and written
// back, any strides; on CUDA as a reference that kernels follow, as the host cannot read it.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <vector>

#include "common/channel_ref.h"
#include "common/tensor.h"

namespace convnorm {

// t is one-dimensional or contiguous.
inline ChannelRef channel_ref(const Tensor& t, DType dtype) {
  return {t.data_ptr(), dtype, t.dim() == 1 ? t.stride(0) : 1};
}

class ChannelVector {
 public:
  explicit ChannelVector(std::int64_t channels) : values_(channels), present_(true) {}

  // One value per channel of input, of its dtype or (16-bit input) float32, on its device.
  ChannelVector(const char* op, const char* name, const OptTensor& t, const Tensor& input) {
    if (!t) return;
    const ScalarType want = input.scalar_type(), got = t->scalar_type();
    const bool half = want == ScalarType::BFloat16 || want == ScalarType::Half;
    check(got == want || (half && got == ScalarType::Float), op, ": mixed dtype: ", name, " has dtype ",
          dtype_name(got), ", must be ", half ? "float32 or " : "", "input's ", dtype_name(want));
    const std::int64_t channels = input.size(1);
    check(t->numel() == channels, op, ": ", name, " should contain ", channels, " elements not ", t->numel());
    check_same_device(op, "input", input, name, *t);
    if (t->is_cuda()) {
      held_ = t->dim() == 1 || t->is_contiguous() ? *t : torch::stable::contiguous(*t);
      ref_ = channel_ref(*held_, float_dtype(op, name, *t));
      return;
    }
    values_.resize(channels);
    present_ = true;
    walk(*t, [to = values_.data()](auto* p, std::size_t i) { to[i] = static_cast<double>(*p); });
  }

  ChannelRef ref() const { return ref_; }

  // Null when the tensor was None, or is on CUDA.
  double* data() { return present_ ? values_.data() : nullptr; }
  const double* data() const { return present_ ? values_.data() : nullptr; }

  void store(const Tensor& t) const {
    walk(t, [from = values_.data()](auto* p, std::size_t i) {
      *p = static_cast<std::remove_pointer_t<decltype(p)>>(from[i]);
    });
  }

 private:
  std::vector<double> values_;
  bool present_ = false;
  OptTensor held_;
  ChannelRef ref_;

  template <class F>
  void walk(const Tensor& t, F f) const {
    switch (t.scalar_type()) {
      case ScalarType::Double:
        return walk_as<double>(t, f);
      case ScalarType::BFloat16:
        return walk_as<c10::BFloat16>(t, f);
      case ScalarType::Half:
        return walk_as<c10::Half>(t, f);
      default:
        return walk_as<float>(t, f);
    }
  }

  template <class T, class F>
  void walk_as(const Tensor& t, F f) const {
    const View v = view(t);
    if (t.is_contiguous()) {
      T* const p = v.as<T>();
      for (std::size_t i = 0; i < values_.size(); ++i) f(p + i, i);
      return;
    }
    for (std::size_t i = 0; i < values_.size(); ++i) {
      std::int64_t rest = static_cast<std::int64_t>(i), offset = 0;
      for (int d = v.dim - 1; d >= 0; --d) {
        offset += rest % v.sizes[d] * v.strides[d];
        rest /= v.sizes[d];
      }
      f(v.as<T>() + offset, i);
    }
  }
};

}  // namespace convnorm
