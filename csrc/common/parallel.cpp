#include "common/parallel.h"

#include <torch/csrc/stable/ops.h>

#include <exception>
#include <mutex>

namespace convnorm {

// At this ABI an exception that leaves a torch worker loses its text, so the first one is kept and rethrown
// here.
void run_parallel(std::int64_t n, std::int64_t grain, RangeFn fn, void* context) {
  std::exception_ptr first;
  std::mutex guard;
  torch::stable::parallel_for(0, n, grain < 1 ? 1 : grain, [&](std::int64_t begin, std::int64_t end) {
    try {
      fn(begin, end, context);
    } catch (...) {
      std::lock_guard<std::mutex> hold(guard);
      if (!first) first = std::current_exception();
    }
  });
  if (first) std::rethrow_exception(first);
}

int parallel_width() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace convnorm
