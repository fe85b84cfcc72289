#include "cpu/scratch.h"

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_set>

#include "cpu/nested_scratch.h"

namespace convnorm {
namespace {

constexpr std::size_t kAlign = 64;

struct Block {
  void* data = nullptr;
  std::size_t size = 0;
  std::atomic<std::size_t> largest{
      0};  // request since the last reset; written by its thread, read by another

  Block();
  ~Block();
};

// The blocks of all threads. Never destroyed: threads may end after static objects do.
struct Everyone {
  std::mutex guard;
  std::unordered_set<Block*> blocks;
};

Everyone& everyone() {
  static Everyone* all = new Everyone;
  return *all;
}

Block::Block() {
  std::lock_guard<std::mutex> hold(everyone().guard);
  everyone().blocks.insert(this);
}

Block::~Block() {
  std::free(data);
  std::lock_guard<std::mutex> hold(everyone().guard);
  everyone().blocks.erase(this);
}

thread_local Block blocks[2 * kSlots];  // those of a kernel, then of one that it calls
thread_local int first_slot = 0;

}  // namespace

void* scratch_bytes(Slot slot, std::size_t bytes) {
  Block& block = blocks[first_slot + static_cast<int>(slot)];
  if (bytes > block.largest.load(std::memory_order_relaxed)) {
    block.largest.store(bytes, std::memory_order_relaxed);
  }
  if (bytes > block.size) {
    const std::size_t size = (bytes + 4095) / 4096 * 4096;
    void* data = std::aligned_alloc(kAlign, size);
    if (!data) throw std::bad_alloc();
    std::free(block.data);
    block.data = data;
    block.size = size;
  }
  return block.data;
}

NestedScratch::NestedScratch() { first_slot = kSlots; }
NestedScratch::~NestedScratch() { first_slot = 0; }

std::size_t scratch_held() {
  std::size_t bytes = 0;
  for (const Block& block : blocks) bytes += block.size;
  return bytes;
}

void scratch_peak_reset() {
  std::lock_guard<std::mutex> hold(everyone().guard);
  for (Block* block : everyone().blocks) block->largest.store(0, std::memory_order_relaxed);
}

std::size_t scratch_peak() {
  std::lock_guard<std::mutex> hold(everyone().guard);
  std::size_t bytes = 0;
  for (Block* block : everyone().blocks) bytes += block->largest.load(std::memory_order_relaxed);
  return bytes;
}

}  // namespace convnorm
