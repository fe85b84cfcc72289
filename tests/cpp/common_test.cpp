// The small torch-free parts: windows, scratch memory, the parallel loop, the ordered list of kernels.
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/parallel.h"
#include "common/registry.h"
#include "common/window.h"
#include "cpu/scratch.h"
#include "parallel_threads.h"
#include "test.h"

using namespace convnorm;

void check_window() {
  Window w;
  w.kernel = {1, 3, 5};
  w.dil = {1, 1, 4};
  EXPECT(reach(w, 0) == 1 && reach(w, 1) == 3 && reach(w, 2) == 17, "%ld", long(reach(w, 2)));
  w.kernel[2] = w.dil[2] = std::int64_t(1) << 20;
  EXPECT(reach(w, 2) == ((std::int64_t(1) << 20) - 1) * (std::int64_t(1) << 20) + 1, "beyond 32 bits");
  const std::int64_t values[] = {7, 8, 9};
  EXPECT((lift(values, 1, 1) == Dims{1, 1, 7}), "1d");
  EXPECT((lift(values, 2, 0) == Dims{0, 7, 8}), "2d");
  EXPECT((lift(values, 3, 0) == Dims{7, 8, 9}), "3d");
}

void check_scratch() {
  void* small = scratch_bytes(Slot::shared, 100);
  void* local = scratch_bytes(Slot::local, 100);
  EXPECT(small != local, "the two slots are apart");
  EXPECT(reinterpret_cast<std::uintptr_t>(small) % 64 == 0, "aligned to a cache line");
  EXPECT(scratch_bytes(Slot::shared, 50) == small, "kept while it is large enough");
  auto* large = static_cast<char*>(scratch_bytes(Slot::shared, 1 << 20));
  large[0] = large[(1 << 20) - 1] = 1;
  EXPECT(scratch_held() >= (1 << 20) + 100, "held %zu", scratch_held());
  scratch_peak_reset();
  EXPECT(scratch_peak() == 0, "nothing was asked for, and %zu seen", scratch_peak());
  scratch_bytes(Slot::shared, 300);
  scratch_bytes(Slot::shared, 200);
  std::thread([] { scratch_bytes(Slot::local, 50); }).join();  // what ended threads had is gone
  std::size_t seen = 0;
  std::thread([&] {
    scratch_bytes(Slot::local, 40);
    seen = scratch_peak();
  }).join();
  EXPECT(seen == 340, "the largest request of each thread, %zu", seen);
}

void check_parallel() {
  for (int threads : {1, 2, 7}) {
    test_threads = threads;
    for (std::int64_t n : {0, 1, 5, 100}) {
      std::vector<int> seen(n, 0);
      parallel_for(n, 3, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) ++seen[i];
      });
      for (int count : seen) EXPECT(count == 1, "each task once, got %d", count);
    }
    bool caught = false;
    try {
      parallel_for(10, 1, [](std::int64_t begin, std::int64_t) { check(begin != 0, "task ", begin); });
    } catch (const std::runtime_error& e) {
      caught = std::string(e.what()) == "task 0";
    }
    EXPECT(caught, "the text of an exception arrives");
  }
}

struct Problem {
  int size;
  Device device = {};
};
const char* only_even(const Problem& p) { return p.size % 2 ? "size is odd" : nullptr; }
void nothing(const Problem&) {}
using Row = KernelRow<Problem>;
constexpr Row kRows[] = {{"even", "", Isa::generic, only_even, nothing},
                         {"device", "", Isa::generic, nullptr, nothing, DeviceKind::cuda},
                         {"not built", "", Isa::generic, nullptr, nullptr, DeviceKind::cuda},
                         {"any", "", Isa::generic, nullptr, nothing}};
const Register<Row> rows("toy", kRows);

template <class E, class F>
std::string message(F&& f) {
  try {
    f();
  } catch (const E& e) {
    return e.what();
  }
  return "nothing was thrown";
}

void check_registry() {
  const std::span<const Row> list(kRows);
  EXPECT(std::string(choose("toy", list, Problem{2}).name) == "even", "the first that accepts");
  EXPECT(std::string(choose("toy", list, Problem{3}).name) == "any", "the next one");
  trace_begin();
  choose("toy", list, Problem{3});
  const std::vector<Verdict> log = trace_end();
  EXPECT(log.size() == 2 && log[0].refusal == "size is odd" && log[1].chosen, "the trace says why");
  force_kernel("toy", "even");
  const std::string refused = message<std::runtime_error>([&] { choose("toy", list, Problem{3}); });
  EXPECT(refused.find("even: size is odd") != std::string::npos, "%s", refused.c_str());
  force_kernel("toy", "");
  const std::string unknown = message<std::invalid_argument>([] { force_kernel("toy", "none"); });
  EXPECT(unknown.find("no kernel 'none'") != std::string::npos, "%s", unknown.c_str());
}

// Rows for another device are no part of the list; a kernel that was not compiled is one with a reason.
void check_devices() {
  const std::span<const Row> list(kRows);
  const Problem cuda{3, {DeviceKind::cuda}};
  EXPECT(std::string(choose("toy", list, cuda).name) == "device", "the first of the device");
  const std::string none = message<std::runtime_error>([&] { choose("toy", list.first(1), cuda); });
  EXPECT(none.find("no kernel is for this device") != std::string::npos, "%s", none.c_str());
  const std::string missing = message<std::runtime_error>([&] { choose("toy", list.subspan(2), cuda); });
  EXPECT(missing.find("not built: this build has no CUDA kernels") != std::string::npos, "%s",
         missing.c_str());
  force_kernel("toy", "any");
  const std::string other = message<std::runtime_error>([&] { choose("toy", list, cuda); });
  EXPECT(other.find("any: is for tensors on another device") != std::string::npos, "%s", other.c_str());
  force_kernel("toy", "");
  for (const KernelInfo& k : known_kernels())
    EXPECT(k.op != "toy" || k.kernel != "not built", "it is not listed");
}

int main() {
  check_window();
  check_scratch();
  check_parallel();
  check_registry();
  check_devices();
  return finish();
}
