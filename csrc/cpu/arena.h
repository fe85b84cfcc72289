// Pieces of a block of scratch memory, each aligned to 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/scratch.h"

namespace convnorm {
namespace {

struct Arena {
  char* base = nullptr;
  std::size_t used = 0;

  template <class T>
  static std::int64_t room(std::int64_t count) {
    return (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
  template <class T>
  T* take(std::int64_t count) {
    T* piece = reinterpret_cast<T*>(base + used);
    used += static_cast<std::size_t>(room<T>(count));
    return piece;
  }
};

// Calls carve(arena), which takes the pieces, twice: with no memory, to find the size, and with it.
template <class Carve>
inline auto carve_scratch(Slot slot, Carve carve) {
  Arena count;
  carve(count);
  Arena arena{static_cast<char*>(scratch_bytes(slot, count.used))};
  return carve(arena);
}

}  // namespace
}  // namespace convnorm
