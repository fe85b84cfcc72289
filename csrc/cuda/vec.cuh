// V neighbouring elements of a tensor: moved as raw words of up to 16 bytes, so that several loads can be in
// flight before the first is used, and widened to the type that sums are kept in.
#pragma once

#include "common/channel_ref.h"
#include "common/dtype.h"
#include "cuda/intrinsics.cuh"

namespace convnorm::cuda {

// Elements in 16 bytes. Doubles go one by one: they are there for accuracy.
template <class T>
inline constexpr int kVector = sizeof(T) == 8 ? 1 : 16 / sizeof(T);

template <class T, int V>
struct Raw {
  static constexpr int kBytes = V * sizeof(T);
  static constexpr int kWords = kBytes < 4 ? 1 : kBytes / 4;
  std::uint32_t word[kWords] = {};
};

template <class T, int V>
__device__ inline Raw<T, V> load(const T* from) {
  Raw<T, V> raw;
  if constexpr (raw.kBytes == 16) {
    const uint4 u = load_words<uint4>(from);
    raw.word[0] = u.x, raw.word[1] = u.y, raw.word[2] = u.z, raw.word[3] = u.w;
  } else if constexpr (raw.kBytes == 8) {
    const uint2 u = load_words<uint2>(from);
    raw.word[0] = u.x, raw.word[1] = u.y;
  } else if constexpr (raw.kBytes == 4) {
    raw.word[0] = load_words<std::uint32_t>(from);
  } else {
    raw.word[0] = load_words<std::uint16_t>(from);
  }
  return raw;
}

template <class T, int V>
__device__ inline void store(T* to, const Raw<T, V>& raw) {
  if constexpr (raw.kBytes == 16)
    store_words(to, uint4{raw.word[0], raw.word[1], raw.word[2], raw.word[3]});
  else if constexpr (raw.kBytes == 8)
    store_words(to, uint2{raw.word[0], raw.word[1]});
  else if constexpr (raw.kBytes == 4)
    store_words(to, raw.word[0]);
  else
    store_words(to, static_cast<std::uint16_t>(raw.word[0]));
}

// Element i of raw.
template <class T, int V>
__device__ inline compute_t<T> element(const Raw<T, V>& raw, int i) {
  if constexpr (sizeof(T) == 8)
    return as_double(raw.word[2 * i], raw.word[2 * i + 1]);
  else if constexpr (sizeof(T) == 4)
    return as_float(raw.word[i]);
  else if constexpr (__is_same(T, f16))
    return f32_of_f16(static_cast<std::uint16_t>(raw.word[i / 2] >> (i % 2 * 16)));
  else
    return as_float(i % 2 ? raw.word[i / 2] & 0xffff0000u : raw.word[i / 2] << 16);
}

// Rounds to nearest.
template <class T, int V>
__device__ inline Raw<T, V> round(const compute_t<T> (&x)[V]) {
  Raw<T, V> raw;
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < V; ++i) raw.word[2 * i] = low_bits(x[i]), raw.word[2 * i + 1] = high_bits(x[i]);
  } else if constexpr (sizeof(T) == 4) {
    for (int i = 0; i < V; ++i) raw.word[i] = bits_of(x[i]);
  } else {
    for (int i = 0; i < V; i += 2) {
      const float high = V == 1 ? 0.0f : x[V == 1 ? 0 : i + 1];
      raw.word[i / 2] = __is_same(T, f16) ? pack_f16(x[i], high) : pack_bf16(x[i], high);
    }
  }
  return raw;
}

template <class T>
__device__ inline compute_t<T> load1(const T* from) {
  return element(load<T, 1>(from), 0);
}
template <class T>
__device__ inline void store1(T* to, compute_t<T> x) {
  const compute_t<T> one[1] = {x};
  store(to, round<T, 1>(one));
}

// Per-channel values in any dtype, as doubles. `otherwise` where there are none.
__device__ inline double read(const ChannelRef& from, std::int64_t c, double otherwise) {
  if (!from.data) return otherwise;
  double value = 0;
  const std::int64_t i = c * from.stride;
  if (from.dtype == DType::f64) value = static_cast<const double*>(from.data)[i];
  if (from.dtype == DType::f32) value = static_cast<const float*>(from.data)[i];
  if (from.dtype == DType::bf16) value = load1(static_cast<const bf16*>(from.data) + i);
  if (from.dtype == DType::f16) value = load1(static_cast<const f16*>(from.data) + i);
  return value;
}

__device__ inline void write(const ChannelRef& to, std::int64_t c, double value) {
  if (!to.data) return;
  const std::int64_t i = c * to.stride;
  if (to.dtype == DType::f64) static_cast<double*>(to.data)[i] = value;
  if (to.dtype == DType::f32) static_cast<float*>(to.data)[i] = static_cast<float>(value);
  if (to.dtype == DType::bf16) store1(static_cast<bf16*>(to.data) + i, static_cast<float>(value));
  if (to.dtype == DType::f16) store1(static_cast<f16*>(to.data) + i, static_cast<float>(value));
}

}  // namespace convnorm::cuda
