// What a host file needs of torch's tensors: a plain view of the metadata, dtype names, layouts and
// allocation. Only host files (<op>.cpp) include this; kernels see pointers and Params.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <ostream>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/device.h"
#include "common/dtype.h"
#include "common/window.h"

namespace convnorm {

using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;
using Ints = std::vector<std::int64_t>;
using torch::headeronly::ScalarType;

inline constexpr int kMaxDims = 5;  // n c d h w

enum class Layout : std::uint8_t { contiguous, channels_last };

// Metadata read once; sizes and strides are borrowed from the tensor, strides in elements.
struct View {
  void* data;
  const std::int64_t* sizes;
  const std::int64_t* strides;
  int dim;
  ScalarType dtype;
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

View view(const Tensor& t);

Ints sizes_of(const Tensor& t);

// t is (n, c, spatial...).
View5 lift(const Tensor& t);
Strides strides_of(const Tensor& t);

// The dtype of a floating tensor, or the error "<op>: <argument> has dtype ..., must be ...".
DType float_dtype(const char* op, const char* argument, const Tensor& t);
const char* dtype_name(ScalarType t);

// Printed as the tensor's Shape, which is made only for an error.
struct SizeOf {
  const Tensor& t;
  friend std::ostream& operator<<(std::ostream& out, const SizeOf& size) {
    return out << Shape{sizes_of(size.t)};
  }
};

// torch's own rule for which layout a tensor asks for (suggest_memory_format); 1d tensors are contiguous.
Layout suggested_layout(const Tensor& t);

Device device_of(const Tensor& t);

// Starts at a multiple of 16 bytes, as all of torch's own tensors do; slices may not.
bool aligned(const Tensor& t);

// Uninitialised bytes for a kernel to work in, given back when the tensor goes.
Tensor workspace(Device device, std::int64_t bytes);

// For kernels on CUDA that take dense, aligned tensors: `t` itself where it is so or on the CPU, whose
// kernels take strides; else a copy.
Tensor operand(const Tensor& t, Layout layout);
inline OptTensor operand(const OptTensor& t, Layout layout) {
  return t ? OptTensor(operand(*t, layout)) : OptTensor();
}

// Uninitialised, dense in the given layout, dtype and device of `like` unless said otherwise.
Tensor empty(const Tensor& like, const Ints& sizes, Layout layout = Layout::contiguous);
Tensor empty(const Tensor& like, const Ints& sizes, Layout layout, ScalarType dtype);

// All of `others` are on the device of `first`; torch's words for it.
void check_same_device(const char* op, const char* first_name, const Tensor& first, const char* name,
                       const Tensor& t);

// t has input's size, dtype and device.
void check_like(const char* op, const char* name, const Tensor& t, const Tensor& input);

}  // namespace convnorm

// Implementations of the namespace's ops for the CPU and CUDA alike: the host code of a room with kernels for
// both is the same. `m` is the library, as in STABLE_TORCH_LIBRARY_IMPL. Once per file.
#define CONVNORM_LIBRARY_IMPL(m)                                                 \
  static void implement_ops(torch::stable::detail::StableLibrary&);              \
  STABLE_TORCH_LIBRARY_IMPL(convnorm, CPU, library) { implement_ops(library); }  \
  STABLE_TORCH_LIBRARY_IMPL(convnorm, CUDA, library) { implement_ops(library); } \
  static void implement_ops(torch::stable::detail::StableLibrary& m)
