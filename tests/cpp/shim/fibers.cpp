// The scheduler behind cuda_runtime.h: fibers, drawn at random.
#include <cuda_runtime.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

extern "C" std::int32_t aoti_torch_get_current_cuda_stream(std::int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

namespace shim {

std::uint64_t seed = 1;
std::int64_t launches = 0;

namespace {

constexpr std::size_t kStack = 64 << 10;
constexpr int kWarp = 32;

std::uint64_t draw() {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  return seed ^= seed << 17;
}

// Threads that wait for each other.
struct Barrier {
  std::vector<int> waiting;
  int expected = 0;
};

#if defined(__x86_64__)
// A context is a stack pointer, below which the registers that a call keeps are pushed. swapcontext would ask
// the kernel for the signal mask at every switch, and the sanitizer would clear the stack's shadow.
using Context = void*;
extern "C" void shim_switch(Context* from, Context to);
asm(R"(
  .text
  .globl shim_switch
shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
void swap(Context& from, Context& to) { shim_switch(&from, to); }
void begin(Context& context, char* stack, std::size_t size, void (*entry)()) {
  auto** top = reinterpret_cast<void**>((reinterpret_cast<std::uintptr_t>(stack) + size) / 16 * 16);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);  // where the first switch returns to
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}
#else
using Context = ucontext_t;
void swap(Context& from, Context& to) { swapcontext(&from, &to); }
void begin(Context& context, char* stack, std::size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* fake_stack = nullptr;
};

std::vector<Fiber> fibers;
std::vector<int> ready;
std::vector<Barrier> warps;
std::vector<std::uint64_t> words;
Barrier block;
Context scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_size = 0;
int current = 0, alive = 0;
const std::function<void()>* body = nullptr;

void fail(const char* what) {
  std::printf("block %u, thread %d: %s\n", blockIdx.x, current, what);
  std::abort();
}

void to_scheduler(bool last) {
#if defined(__SANITIZE_ADDRESS__)
  void** keep = last ? nullptr : &fibers[current].fake_stack;
  __sanitizer_start_switch_fiber(keep, scheduler_stack, scheduler_size);
#endif
  const int me = current;
  swap(fibers[me].context, scheduler);
  (void)last;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fibers[me].fake_stack, nullptr, nullptr);
#endif
}

void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  (*body)();
  --alive;
  to_scheduler(true);
}

void switch_to(int next) {
  current = next;
  threadIdx = dim3(static_cast<unsigned>(next));
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fibers[next].stack.get(), kStack);
#endif
  swap(scheduler, fibers[next].context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void wait_at(Barrier& barrier) {
  barrier.waiting.push_back(current);
  if (static_cast<int>(barrier.waiting.size()) == barrier.expected) {
    ready.insert(ready.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
  }
  to_scheduler(false);
}

void run_block(int threads) {
  if (static_cast<int>(fibers.size()) < threads) fibers.resize(threads);
  ready.resize(threads);
  std::iota(ready.begin(), ready.end(), 0);
  block = {{}, threads};
  warps.assign((threads + kWarp - 1) / kWarp, {});
  for (int t = 0; t < threads; ++t) ++warps[t / kWarp].expected;
  words.assign(threads, 0);
  alive = threads;
  for (int t = 0; t < threads; ++t) begin(fibers[t].context, fibers[t].stack.get(), kStack, run_thread);
  while (alive > 0) {
    if (ready.empty()) fail("threads wait at a barrier that others do not reach");
    std::swap(ready[draw() % ready.size()], ready.back());
    const int next = ready.back();
    ready.pop_back();
    switch_to(next);
  }
}

}  // namespace

int lane() { return current % kWarp; }

void wait_for_block() { wait_at(block); }

bool any_of_block(bool mine) {
  static bool any = false;
  any = any || mine;
  wait_at(block);
  const bool all_said = any;
  wait_at(block);
  any = false;
  wait_at(block);
  return all_said;
}

std::uint64_t exchange(std::uint64_t word, int lane) {
  Barrier& warp = warps[current / kWarp];
  const int from = current / kWarp * kWarp + lane;
  words[current] = word;
  wait_at(warp);
  const std::uint64_t got = words[from];
  wait_at(warp);
  return got;
}

void run_grid(dim3 grid, dim3 threads, const std::function<void()>& kernel) {
  ++launches;
  body = &kernel;
  gridDim = grid;
  blockDim = threads;
  std::vector<unsigned> order(grid.x);
  std::iota(order.begin(), order.end(), 0u);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw() % i]);
  for (const unsigned b : order) {
    blockIdx = dim3(b);
    run_block(static_cast<int>(threads.x));
  }
}

}  // namespace shim
