#include "common/pool_window.h"

namespace convnorm {
namespace {

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

// The dilated reach of a window, where it is more than its kernel.
struct Covered {
  const Window& w;
  int d;
};
std::ostream& operator<<(std::ostream& out, const Covered& c) {
  if (c.w.dil[c.d] == 1) return out;
  return out << " (kernel_size " << c.w.kernel[c.d] << " dilated by " << c.w.dil[c.d] << " covers k "
             << reach(c.w, c.d) << ")";
}

void check_pool_window(const std::string& op, const Window& w, int dims) {
  for (int d = kSpatial - dims; d < kSpatial; ++d) {
    check(w.kernel[d] > 0, op, ": kernel_size ", w.kernel[d], InDim{d}, " must be greater than zero");
    check(w.stride[d] > 0, op, ": stride ", w.stride[d], InDim{d},
          " must be greater than zero; stride should not be zero");
    check(w.dil[d] > 0, op, ": dilation ", w.dil[d], InDim{d}, " must be greater than zero");
    check(w.pad[d] >= 0, op, ": padding ", w.pad[d], InDim{d}, " must be non-negative");
    check(w.pad[d] <= w.kernel[d] / 2, op, ": padding ", w.pad[d], InDim{d},
          " must be at most half of kernel_size ", w.kernel[d]);
  }
}

}  // namespace

Dims lifted(const std::string& op, const char* argument, const std::vector<std::int64_t>& values, int dims,
            std::int64_t fill) {
  check(static_cast<int>(values.size()) == dims, op, ": ", argument, " has ", values.size(),
        " values, must have ", dims, ", one per spatial dimension");
  return lift(values.data(), dims, fill);
}

Window pool_window(const std::string& op, const std::vector<std::int64_t>& values, int dims,
                   Dilated dilated) {
  const int parts = dilated == Dilated::yes ? 4 : 3, wanted = parts * dims;
  check(static_cast<int>(values.size()) == wanted, op, ": window has ", values.size(), " values, must have ",
        wanted, ", kernel_size, stride, padding", parts == 4 ? ", dilation" : "", " per spatial dimension");
  Window w;
  w.kernel = lift(values.data(), dims, 1);
  w.stride = lift(values.data() + dims, dims, 1);
  w.pad = w.pad_hi = lift(values.data() + 2 * dims, dims, 0);
  if (parts == 4) w.dil = lift(values.data() + 3 * dims, dims, 1);
  check_pool_window(op, w, dims);
  return w;
}

std::int64_t pooled_size(const Window& w, int d, std::int64_t in, bool ceil_mode) {
  const std::int64_t span = in + 2 * w.pad[d] - reach(w, d);
  const std::int64_t out = floor_div(span + (ceil_mode ? w.stride[d] - 1 : 0), w.stride[d]) + 1;
  return ceil_mode && (out - 1) * w.stride[d] >= in + w.pad[d] ? out - 1 : out;
}

void check_pooled_size(const std::string& op, const Window& w, int d, std::int64_t in, std::int64_t out) {
  check(out >= 1, op, ": output ", dim_name(d), " (", out, ") = (in ", in, " + 2*pad ", w.pad[d], " - k ",
        reach(w, d), ")/stride ", w.stride[d], " + 1 must be >= 1", Covered{w, d});
}

void check_not_empty(const std::string& op, const std::vector<std::int64_t>& sizes, std::size_t first) {
  for (std::size_t i = first; i < sizes.size(); ++i)
    check(sizes[i] > 0, op, ": input of size ", Shape{sizes}, " has dimension ", i,
          " of size zero; only the batch ", first > 1 ? "and channels " : "", "may be empty");
}

std::string pool_name(const char* stem, const std::vector<std::int64_t>& sizes) {
  check(sizes.size() >= 3 && sizes.size() <= 5, stem, ": got input of size ", Shape{sizes},
        ", must be (n, c) and 1 to 3 spatial dimensions");
  return stem + std::to_string(sizes.size() - 2) + "d";
}

}  // namespace convnorm
