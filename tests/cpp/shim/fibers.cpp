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

// A block that runs, or waits for the others of its grid.
struct Block {
  unsigned index = 0;
  std::vector<Fiber> fibers;
  std::vector<int> ready, at_grid;
  std::vector<Barrier> warps;
  std::vector<std::uint64_t> words;
  Barrier barrier;
  int alive = 0;
  bool any = false;
  std::vector<uint4> dynamic;
};

Block* now = nullptr;
Context scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_size = 0;
int current = 0;
const std::function<void()>* body = nullptr;

void fail(const char* what) {
  std::printf("block %u, thread %d: %s\n", blockIdx.x, current, what);
  std::abort();
}

void to_scheduler(bool last) {
  Fiber& me = now->fibers[current];
#if defined(__SANITIZE_ADDRESS__)
  void** keep = last ? nullptr : &me.fake_stack;
  __sanitizer_start_switch_fiber(keep, scheduler_stack, scheduler_size);
#endif
  swap(me.context, scheduler);
  (void)last;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me.fake_stack, nullptr, nullptr);
#endif
}

void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  (*body)();
  --now->alive;
  to_scheduler(true);
}

void switch_to(int next) {
  current = next;
  threadIdx = dim3(static_cast<unsigned>(next));
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, now->fibers[next].stack.get(), kStack);
#endif
  swap(scheduler, now->fibers[next].context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void wait_at(Barrier& barrier) {
  barrier.waiting.push_back(current);
  if (static_cast<int>(barrier.waiting.size()) == barrier.expected) {
    now->ready.insert(now->ready.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
  }
  to_scheduler(false);
}

void begin_block(Block& block, unsigned index, int threads, std::size_t dynamic) {
  block.index = index;
  if (static_cast<int>(block.fibers.size()) < threads) block.fibers.resize(threads);
  block.ready.resize(threads);
  std::iota(block.ready.begin(), block.ready.end(), 0);
  block.barrier = {{}, threads};
  block.warps.assign((threads + kWarp - 1) / kWarp, {});
  for (int t = 0; t < threads; ++t) ++block.warps[t / kWarp].expected;
  block.words.assign(threads, 0);
  block.alive = threads;
  block.dynamic.assign((dynamic + sizeof(uint4) - 1) / sizeof(uint4), uint4{~0u, ~0u, ~0u, ~0u});
  for (int t = 0; t < threads; ++t)
    begin(block.fibers[t].context, block.fibers[t].stack.get(), kStack, run_thread);
}

// Until all of its threads have ended, or all wait for the grid.
void run_block(Block& block) {
  now = &block;
  blockIdx = dim3(block.index);
  block.ready.insert(block.ready.end(), block.at_grid.begin(), block.at_grid.end());
  block.at_grid.clear();
  while (block.alive > 0) {
    if (block.ready.empty()) {
      if (static_cast<int>(block.at_grid.size()) == block.alive) return;
      fail("threads wait at a barrier that others do not reach");
    }
    std::swap(block.ready[draw() % block.ready.size()], block.ready.back());
    const int next = block.ready.back();
    block.ready.pop_back();
    switch_to(next);
  }
}

template <class T>
void shuffle(std::vector<T>& order) {
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw() % i]);
}

void run_together(const cudaLaunchConfig_t& config) {
  std::vector<Block> blocks(config.gridDim.x);
  std::vector<Block*> order;
  for (unsigned b = 0; b < config.gridDim.x; ++b) {
    begin_block(blocks[b], b, static_cast<int>(config.blockDim.x), config.dynamicSmemBytes);
    order.push_back(&blocks[b]);
  }
  while (!order.empty()) {
    shuffle(order);
    for (Block* block : order) run_block(*block);
    const auto ended = std::erase_if(order, [](const Block* block) { return block->alive == 0; });
    if (ended > 0 && !order.empty()) fail("blocks wait for the grid that others have left");
  }
}

}  // namespace

int cooperative = 1, processors = 3, shared_bytes = 48 << 10;

int lane() { return current % kWarp; }

void wait_for_block() { wait_at(now->barrier); }

void wait_for_grid() {
  now->at_grid.push_back(current);
  to_scheduler(false);
}

void* dynamic_shared() { return now->dynamic.data(); }

bool any_of_block(bool mine) {
  now->any = now->any || mine;
  wait_for_block();
  const bool all_said = now->any;
  wait_for_block();
  now->any = false;
  wait_for_block();
  return all_said;
}

std::uint64_t exchange(std::uint64_t word, int lane) {
  Barrier& warp = now->warps[current / kWarp];
  const int from = current / kWarp * kWarp + lane;
  now->words[current] = word;
  wait_at(warp);
  const std::uint64_t got = now->words[from];
  wait_at(warp);
  return got;
}

void run_grid(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  ++launches;
  body = &kernel;
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  if (config.numAttrs > 0 && config.attrs[0].val.cooperative) return run_together(config);
  static Block block;
  std::vector<unsigned> order(gridDim.x);
  std::iota(order.begin(), order.end(), 0u);
  shuffle(order);
  for (const unsigned b : order) {
    begin_block(block, b, static_cast<int>(blockDim.x), config.dynamicSmemBytes);
    run_block(block);
    if (block.alive > 0) fail("waits for a grid whose blocks do not run at the same time");
  }
}

}  // namespace shim
