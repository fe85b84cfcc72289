#include "ops/max_pool/max_pool_host.h"

#include "common/pool_window.h"
#include "common/tensor.h"

namespace convnorm::max_pool {
namespace {

// A problem without its tensors; sizes are (n, c, spatial...).
Params problem(const std::string& op, const Ints& sizes, const Ints& window) {
  const int dims = static_cast<int>(sizes.size()) - 2;
  Params p;
  p.window = pool_window(op, window, dims, Dilated::yes);
  check_not_empty(op, sizes);
  p.n = sizes[0];
  p.c = sizes[1];
  p.in = lift(sizes.data() + 2, dims, 1);
  return p;
}

Ints pooled_sizes(const Params& p, int dims) {
  Ints sizes{p.n, p.c};
  for (int d = kSpatial - dims; d < kSpatial; ++d) sizes.push_back(p.out[d]);
  return sizes;
}

Argmax recorded_kind(const std::string& op, const Params& p, std::int64_t record) {
  check(record >= 0 && record <= 2, op, ": record ", record,
        " must be 0 (nothing), 1 (offsets) or 2 (indices)");
  if (record != 1) return record == 0 ? Argmax::none : Argmax::index64;
  return positions(p.window) <= 256 ? Argmax::offset8 : Argmax::offset32;
}

ScalarType code_type(Argmax kind) {
  if (kind == Argmax::index64) return ScalarType::Long;
  return kind == Argmax::offset32 ? ScalarType::Int : ScalarType::Byte;
}

}  // namespace

Pooled pooled(const std::string& op, const Tensor& input, const Ints& window, bool ceil_mode,
              std::int64_t record) {
  const Ints sizes = sizes_of(input);
  const int dims = static_cast<int>(sizes.size()) - 2;
  Params p = problem(op, sizes, window);
  for (int d = kSpatial - dims; d < kSpatial; ++d) {
    p.out[d] = pooled_size(p.window, d, p.in[d], ceil_mode);
    check_pooled_size(op, p.window, d, p.in[d], p.out[d]);
  }
  p.dtype = float_dtype(op.c_str(), "input", input);
  p.record = recorded_kind(op, p, record);
  const Layout layout = suggested_layout(input);
  const Ints pooled = pooled_sizes(p, dims);
  Tensor output = empty(input, pooled, layout);
  Tensor argmax = p.record == Argmax::none ? empty(input, {0}, Layout::contiguous, ScalarType::Byte)
                                           : empty(input, pooled, layout, code_type(p.record));
  p.input = strides_of(input);
  p.output = strides_of(output);
  if (p.record != Argmax::none) p.argmax = strides_of(argmax);
  return {p, output, argmax};
}

Params recorded_problem(const std::string& op, const Ints& input_size, const Ints& window,
                        const Tensor& argmax) {
  Params p = problem(op, input_size, window);
  const Ints pooled = sizes_of(argmax);
  check(pooled.size() == input_size.size() && pooled[0] == p.n && pooled[1] == p.c, op, ": argmax of size ",
        Shape{pooled}, " does not belong to an input of size ", Shape{input_size});
  const int dims = static_cast<int>(pooled.size()) - 2;
  p.out = lift(pooled.data() + 2, dims, 1);
  for (int d = kSpatial - dims; d < kSpatial; ++d) {
    const std::int64_t least = pooled_size(p.window, d, p.in[d], false);
    const std::int64_t most = pooled_size(p.window, d, p.in[d], true);
    check(p.out[d] == least || p.out[d] == most, op, ": argmax has ", dim_name(d), " ", p.out[d],
          ", must be ", least, most == least ? "" : text(" (", most, " with ceil_mode)"));
  }
  switch (argmax.scalar_type()) {
    case ScalarType::Byte:
      check(positions(p.window) <= 256, op, ": argmax of uint8 does not belong to a window of ",
            positions(p.window), " positions");
      p.record = Argmax::offset8;
      break;
    case ScalarType::Int:
      p.record = Argmax::offset32;
      break;
    case ScalarType::Long:
      p.record = Argmax::index64;
      break;
    default:
      check(false, op, ": argmax has dtype ", dtype_name(argmax.scalar_type()),
            ", must be uint8, int32 or int64");
  }
  p.argmax = strides_of(argmax);
  return p;
}

void take_gradient(const std::string& op, Params& p, const Tensor& grad_output, const Tensor& argmax) {
  const Ints grad_sizes = sizes_of(grad_output), pooled = sizes_of(argmax);
  check(grad_sizes == pooled, op, ": grad_output of size ", Shape{grad_sizes}, " must have argmax's size ",
        Shape{pooled});
  check_same_device(op.c_str(), "grad_output", grad_output, "argmax", argmax);
  p.dtype = float_dtype(op.c_str(), "grad_output", grad_output);
  p.output = strides_of(grad_output);
}

}  // namespace convnorm::max_pool
