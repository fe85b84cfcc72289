// Stores around the caches, for results that would only evict what is still needed there: memory is then
// written without having been read. Include after cpu/vec.h.
#pragma once

namespace convnorm {
namespace {

// Streaming pays once the output is far larger than the caches, and needs whole aligned vectors.
inline constexpr std::int64_t kStreamBytes = 8 << 20;

template <class T>
inline bool can_stream(const T* p, std::int64_t length) {
  return sizeof(T) >= 4 && reinterpret_cast<std::uintptr_t>(p) % CONVNORM_VECTOR_BYTES == 0 &&
         length * static_cast<std::int64_t>(sizeof(T)) >= 256;
}

// Whether rows of n elements at p are whole cache lines.
template <class T>
inline bool whole_lines(const T* p, std::int64_t n) {
  return reinterpret_cast<std::uintptr_t>(p) % 64 == 0 && n * static_cast<std::int64_t>(sizeof(T)) % 64 == 0;
}

// p is aligned to a vector. Lines are to be written whole, one after the other: a vector is one, or its
// neighbours follow at once.
template <class C>
inline void stream(C* p, vec<C> v) {
#if defined(__x86_64__) && CONVNORM_VECTOR_BYTES == 64
  _mm512_stream_ps(reinterpret_cast<float*>(p), bits_as<__m512>(v));
#elif defined(__x86_64__) && CONVNORM_VECTOR_BYTES == 32
  _mm256_stream_ps(reinterpret_cast<float*>(p), bits_as<__m256>(v));
#elif defined(__x86_64__)
  _mm_stream_ps(reinterpret_cast<float*>(p), bits_as<__m128>(v));
#else
  store(p, v);
#endif
}

// Streaming stores are ordered before whatever other threads read next.
inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace convnorm
