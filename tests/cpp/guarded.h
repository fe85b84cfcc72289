// Vectors whose memory ends, or begins, at a page that nothing may touch: a kernel that reads or writes
// across that end crashes, sanitized or not. Ends and beginnings take turns. What is left of the page on the
// other side is poisoned, where the address sanitizer looks, and must be as it was in the end.
#pragma once

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "test.h"

inline bool ends_at_the_page = false;

template <class T>
struct Guarded {
  using value_type = T;
  static constexpr char kUntouched = 0x5a;

  Guarded() = default;
  template <class U>
  Guarded(const Guarded<U>&) {}
  bool operator==(const Guarded&) const { return true; }

  static std::size_t page() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }
  static std::size_t whole_pages(std::size_t n) { return (n * sizeof(T) + page() - 1) / page() * page(); }

  T* allocate(std::size_t n) {
    const std::size_t room = whole_pages(n), rest = room - n * sizeof(T);
    void* const all = mmap(nullptr, room + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    char* const first = static_cast<char*>(all) + page();
    if (mprotect(first, room, PROT_READ | PROT_WRITE)) throw std::bad_alloc();
    ends_at_the_page = !ends_at_the_page;
    char* const left = ends_at_the_page ? first : first + n * sizeof(T);
    std::memset(left, kUntouched, rest);
    ASAN_POISON_MEMORY_REGION(left, rest);
    return reinterpret_cast<T*>(ends_at_the_page ? first + rest : first);
  }

  void deallocate(T* p, std::size_t n) {
    char* const first = reinterpret_cast<char*>(reinterpret_cast<std::uintptr_t>(p) / page() * page());
    const std::size_t room = whole_pages(n);
    ASAN_UNPOISON_MEMORY_REGION(first, room);
    char* const begin = reinterpret_cast<char*>(p);
    const auto untouched = [](char byte) { return byte == kUntouched; };
    EXPECT(std::all_of(first, begin, untouched), "written before a buffer");
    EXPECT(std::all_of(begin + n * sizeof(T), first + room, untouched), "written behind a buffer");
    munmap(first - page(), room + 2 * page());
  }
};

template <class T>
using Buffer = std::vector<T, Guarded<T>>;
