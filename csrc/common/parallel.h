// Work over [0, n) in chunks on the calling framework's thread pool (so torch.set_num_threads is honoured).
//
// A task index, never a thread index, decides what is computed: that is what makes results the same bits for
// any number of threads. Inside a parallel region a nested call runs serially.
#pragma once

#include <cstdint>
#include <type_traits>

namespace convnorm {

using RangeFn = void (*)(std::int64_t begin, std::int64_t end, void* context);

// Defined in parallel.cpp over torch's pool, and by the C++ unit tests over std::thread. Exceptions thrown by
// fn are carried to the caller with their text.
void run_parallel(std::int64_t n, std::int64_t grain, RangeFn fn, void* context);

// Threads that a parallel_for here can use. Only for cutting work whose results do not depend on the cut.
int parallel_width();

// body(begin, end) for ranges of at least `grain` tasks.
template <class F>
void parallel_for(std::int64_t n, std::int64_t grain, F&& body) {
  if (n <= 0) return;
  run_parallel(
      n, grain,
      [](std::int64_t begin, std::int64_t end, void* context) {
        (*static_cast<std::remove_reference_t<F>*>(context))(begin, end);
      },
      &body);
}

}  // namespace convnorm
