// run_parallel over std::thread, in place of torch's pool: one chunk per thread, nested calls serial.
#include "common/parallel.h"

#include <exception>
#include <thread>
#include <vector>

#include "parallel_threads.h"

namespace convnorm {

int test_threads = 3;
bool test_ignores_grain = false;

namespace {
thread_local bool inside = false;
}

int parallel_width() { return test_threads; }

void run_parallel(std::int64_t n, std::int64_t grain, RangeFn fn, void* context) {
  const std::int64_t least = grain < 1 || test_ignores_grain ? 1 : grain;
  const std::int64_t chunk = std::max(least, (n + test_threads - 1) / test_threads);
  if (inside || chunk >= n) return fn(0, n, context);
  std::vector<std::thread> threads;
  std::vector<std::exception_ptr> errors((n + chunk - 1) / chunk);
  for (std::int64_t begin = 0; begin < n; begin += chunk)
    threads.emplace_back([=, &errors] {
      inside = true;
      try {
        fn(begin, std::min(n, begin + chunk), context);
      } catch (...) {
        errors[begin / chunk] = std::current_exception();
      }
    });
  for (std::thread& t : threads) t.join();
  for (const std::exception_ptr& e : errors)
    if (e) std::rethrow_exception(e);
}

}  // namespace convnorm
