#include "cpu/scratch.h"

#include <cstdlib>
#include <new>

namespace convnorm {
namespace {

constexpr std::size_t kAlign = 64;

struct Block {
  void* data = nullptr;
  std::size_t size = 0;
  ~Block() { std::free(data); }
};

thread_local Block blocks[2];

}  // namespace

void* scratch_bytes(Slot slot, std::size_t bytes) {
  Block& block = blocks[static_cast<int>(slot)];
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

std::size_t scratch_held() { return blocks[0].size + blocks[1].size; }

}  // namespace convnorm
