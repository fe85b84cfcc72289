// What max and average pooling share on the host: the checks of a pooling window, torch's output size, and
// lists of ints per spatial dimension. Torch-free.
#pragma once

#include <string>
#include <vector>

#include "common/check.h"
#include "common/window.h"

namespace convnorm {

// Parts of messages that are put into words only when a check fails: a call has no time for that.
struct InDim {
  int d;
};
inline std::ostream& operator<<(std::ostream& out, InDim dim) {
  return out << " (" << dim_name(dim.d) << ")";
}

// `values` as d, h, w, or the error that `argument` has the wrong number of them.
Dims lifted(const std::string& op, const char* argument, const std::vector<std::int64_t>& values, int dims,
            std::int64_t fill);

// kernel_size, stride, padding and, of max pooling, dilation, checked. The ops take them as one list: each
// list of a call from Python costs 1 us, and 2 to 3 when it is not in the caches.
enum class Dilated : bool { no, yes };
Window pool_window(const std::string& op, const std::vector<std::int64_t>& values, int dims, Dilated dilated);

// torch's rule: with ceil_mode, a last window that would start in the high padding is dropped.
std::int64_t pooled_size(const Window& w, int d, std::int64_t in, bool ceil_mode);

void check_pooled_size(const std::string& op, const Window& w, int d, std::int64_t in, std::int64_t out);

// Sizes are (n, c, spatial...), of which those from dimension `first` on must not be zero.
void check_not_empty(const std::string& op, const std::vector<std::int64_t>& sizes, std::size_t first = 1);

// "<stem>2d" for sizes of 4 dimensions.
std::string pool_name(const char* stem, const std::vector<std::int64_t>& sizes);

}  // namespace convnorm
