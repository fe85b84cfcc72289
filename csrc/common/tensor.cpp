#include "common/tensor.h"

#include <algorithm>
#include <numeric>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace convnorm {

View view(const Tensor& t) {
  const auto sizes = t.sizes();
  const auto strides = t.strides();
  return {t.data_ptr(), sizes.data(), strides.data(), static_cast<int>(sizes.size()), t.scalar_type()};
}

Ints sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

Strides strides_of(const Tensor& t) {
  const View5 v = lift(t);
  return {v.stride_n, v.stride_c, v.stride};
}

View5 lift(const Tensor& t) {
  const View v = view(t);
  check(v.dim >= 2 && v.dim <= kMaxDims, "lift: got ", v.dim, " dimensions, must be 2 to 5");
  View5 out;
  out.data = v.data;
  out.n = v.sizes[0];
  out.c = v.sizes[1];
  out.stride_n = v.strides[0];
  out.stride_c = v.strides[1];
  out.size = lift(v.sizes + 2, v.dim - 2, 1);
  out.stride = lift(v.strides + 2, v.dim - 2, 0);
  return out;
}

DType float_dtype(const char* op, const char* argument, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      break;
  }
  check(false, op, ": ", argument, " has dtype ", dtype_name(t.scalar_type()),
        ", must be float32, float64, bfloat16 or float16");
  return DType::f32;
}

const char* dtype_name(ScalarType t) {
  switch (t) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return "an unsupported type";
  }
}

Layout suggested_layout(const Tensor& t) {
  const View v = view(t);
  if (v.dim < 4 || v.strides[1] == 0) return Layout::contiguous;
  // channels, then the last spatial dimension, ... then the batch: strides must not decrease.
  std::int64_t least = 0;
  for (int step = 0; step < v.dim; ++step) {
    const int d = step == 0 ? 1 : step == v.dim - 1 ? 0 : v.dim - step;
    if (v.sizes[d] == 0 || v.strides[d] < least) return Layout::contiguous;
    if (d == 0 && least == v.strides[1]) return Layout::contiguous;  // all sizes but one are 1: ambiguous
    least = v.strides[d];
    if (v.sizes[d] > 1) least *= v.sizes[d];
  }
  return Layout::channels_last;
}

namespace {

// Asks for huge pages under memory that the allocator has just mapped for a large tensor: malloc maps blocks
// of 32 MB and more anew each time, and its 4 KB pages, first touched by our kernel, can cost more than the
// kernel (numpy asks so too). A hint: where the system says never, nothing happens.
void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  constexpr std::uintptr_t kMapped = 32 << 20, kPage = 2 << 20;
  if (bytes < kMapped) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

Tensor empty(const Tensor& like, const Ints& sizes, Layout layout) {
  return empty(like, sizes, layout, like.scalar_type());
}

namespace {

// Strides of a dense tensor; those of a dimension of size one are as if it were longer.
Ints dense_strides(const Ints& sizes, Layout layout) {
  const int dim = static_cast<int>(sizes.size());
  Ints strides(dim);
  std::int64_t run = 1;
  const auto place = [&](int d) {
    strides[d] = run;
    run *= sizes[d] > 1 ? sizes[d] : 1;
  };
  if (layout == Layout::channels_last) place(1);
  for (int d = dim - 1; d >= 0; --d)
    if (layout == Layout::contiguous || d != 1) place(d);
  return strides;
}

Tensor empty_on(Device device, const Ints& sizes, const Ints& strides, ScalarType dtype) {
  const std::int32_t code = torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(dtype));
  const bool cuda = device.kind == DeviceKind::cuda;
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<std::int64_t>(sizes.size()), sizes.data(), strides.data(), code,
      cuda ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu(), device.index, &handle));
  return Tensor(handle);
}

bool is_dense(const Tensor& t, Layout layout) {
  const View v = view(t);
  const Ints wanted = dense_strides({v.sizes, v.sizes + v.dim}, layout);
  for (int d = 0; d < v.dim; ++d)
    if (v.sizes[d] > 1 && v.strides[d] != wanted[d]) return false;
  return true;
}

}  // namespace

Tensor empty(const Tensor& like, const Ints& sizes, Layout layout, ScalarType dtype) {
  Tensor result = empty_on(device_of(like), sizes, dense_strides(sizes, layout), dtype);
  if (!result.is_cuda()) advise_huge_pages(result.data_ptr(), result.numel() * result.element_size());
  return result;
}

Device device_of(const Tensor& t) {
  if (!t.is_cuda()) return {};
  return {DeviceKind::cuda, static_cast<int>(t.get_device_index())};
}

Tensor workspace(Device device, std::int64_t bytes) {
  return empty_on(device, {bytes}, {1}, ScalarType::Byte);
}

bool aligned(const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.data_ptr()) % 16 == 0; }

Tensor operand(const Tensor& t, Layout layout) {
  if (!t.is_cuda() || t.numel() == 0 || (is_dense(t, layout) && aligned(t))) return t;
  Tensor copy = empty(t, sizes_of(t), layout);
  torch::stable::copy_(copy, t);
  return copy;
}

void check_same_device(const char* op, const char* first_name, const Tensor& first, const char* name,
                       const Tensor& t) {
  check(first.is_cuda() == t.is_cuda() && first.get_device_index() == t.get_device_index(), op, ": ",
        first_name, " and ", name,
        " are on different devices; Expected all tensors to be on the same device");
}

void check_like(const char* op, const char* name, const Tensor& t, const Tensor& input) {
  check(std::ranges::equal(t.sizes(), input.sizes()), op, ": ", name, " of size ", SizeOf{t},
        " must have the size of input, ", SizeOf{input});
  check(t.scalar_type() == input.scalar_type(), op, ": ", name, " has dtype ", dtype_name(t.scalar_type()),
        ", must be input's ", dtype_name(input.scalar_type()));
  check_same_device(op, "input", input, name, t);
}

}  // namespace convnorm
