// Takes pieces off a block of scratch memory, each aligned to 64 bytes; sizes are found by a first, unbacked
// pass.
#pragma once

#include <cstddef>
#include <cstdint>

namespace convnorm {
namespace {

struct Arena {
  char* base = nullptr;
  std::size_t used = 0;
  template <class T>
  T* take(std::int64_t count) {
    T* piece = reinterpret_cast<T*>(base + used);
    used += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
};

}  // namespace
}  // namespace convnorm
