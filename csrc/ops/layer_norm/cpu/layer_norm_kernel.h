// Layer norm: the forward, what the backward shares with it, and the bodies' table. Included by one small
// file per instruction set.
//
// Forward: rows in batches that stay in L1: their first shifts, their sums, their roots (as one vector), then
// one write, while the next batch is fetched; one row after the other would wait for each of these. Rows of
// more than a segment (cpu/sweep.h) go alone; when they are few they are cut into chunks, whose moments are
// merged in order.
#pragma once

#include "cpu/sweep.h"

namespace convnorm::layer_norm {
namespace {

template <class T, bool kAffine>
struct RowsForward {
  using C = compute_t<T>;
  using Standard = Standardise<C, kBatch>;
  const Forward& p;
  const T* const x;
  T* const out;
  const std::int64_t chunks;
  const bool stream;
  const C *weight = nullptr, *bias = nullptr;

  explicit RowsForward(const Forward& params)
      : p(params),
        x(static_cast<const T*>(p.x)),
        out(static_cast<T*>(p.out)),
        chunks(chunks_of(p.rows, p.size)),
        stream(p.rows * p.size * static_cast<std::int64_t>(sizeof(T)) >= kStreamBytes) {}

  void normalise(std::int64_t row, std::int64_t begin, std::int64_t length, const Standard& k,
                 std::int64_t which, std::int64_t ahead) const {
    const T* from = x + row * p.size + begin;
    T* to = out + row * p.size + begin;
    const C *w = weight + begin, *b = bias + begin;
    const vec<C> center = splat<C>(k.center[which]), inv = splat<C>(k.inv[which]),
                 rest = splat<C>(k.rest[which]);
    const T* next = from + ahead;
    each_vector<C>(length, stream && can_stream(to, length),
                   [&](int, std::int64_t i, auto access, ivec<C>) CONVNORM_INLINE {
                     __builtin_prefetch(next + i);
                     vec<C> y = (access.get(from + i) - center) * inv + rest;
                     if constexpr (kAffine) y = y * access.get(w + i) + access.get(b + i);
                     access.put(to + i, y);
                   });
  }

  void set(std::int64_t row, const Moments& m) const {
    p.mean[row] = m.mean;
    p.var[row] = m.m2 / m.count;
  }

  // Rows [row, row + rows) of at most a segment.
  void batch(std::int64_t row, std::int64_t rows) const {
    double mean[kBatch], var[kBatch];
    batch_moments(x + row * p.size, rows, p.size, mean, var);
    Standard k;
    k.set(mean, var, p.eps, kBatch);
    for (std::int64_t r = 0; r < rows; ++r) {
      p.mean[row + r] = mean[r], p.var[row + r] = var[r];
      normalise(row + r, 0, p.size, k, r, rows * p.size);
    }
  }

  void normalise_alone(std::int64_t row, std::int64_t begin, std::int64_t length) const {
    Standard k;
    k.set(p.mean + row, p.var + row, p.eps, 1);
    normalise(row, begin, length, k, 0, length);
  }

  void whole_rows() const {
    const std::int64_t some = batch_of(p.size), tasks = ceil_div(p.rows, some);
    parallel_for(tasks, imax(1, kGrain / (p.size * some)), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        if (p.size <= kSegment) {
          batch(t * some, imin(some, p.rows - t * some));
        } else {
          set(t, run_moments(x + t * p.size, p.size));
          normalise_alone(t, 0, p.size);
        }
      }
      stream_fence();
    });
  }

  std::int64_t chunk_begin(std::int64_t chunk) const {
    return chunk == chunks ? p.size : p.size * chunk / chunks / kSegment * kSegment;
  }

  void in_chunks(Moments* partial) const {
    const auto each = [&](auto f) {
      parallel_for(p.rows * chunks, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t) {
          const std::int64_t begin = chunk_begin(t % chunks), end = chunk_begin(t % chunks + 1);
          f(t, t / chunks, begin, end - begin);
        }
        stream_fence();
      });
    };
    each([&](std::int64_t t, std::int64_t row, std::int64_t begin, std::int64_t length) {
      partial[t] = run_moments(x + row * p.size + begin, length);
    });
    for (std::int64_t row = 0; row < p.rows; ++row) {
      Moments total;
      for (std::int64_t k = 0; k < chunks; ++k) merge(total, partial[row * chunks + k]);
      set(row, total);
    }
    each([&](std::int64_t, std::int64_t row, std::int64_t begin, std::int64_t length) {
      normalise_alone(row, begin, length);
    });
  }

  void run() {
    const std::int64_t room = kAffine ? Arena::room<C>(p.size) : 0;
    Arena arena{static_cast<char*>(
        scratch_bytes(Slot::shared, 2 * room + Arena::room<Moments>(p.rows * (chunks > 1 ? chunks : 0))))};
    if constexpr (kAffine) {
      weight = widened<C>(p.weight, p.weight_dtype, p.size, 1, arena.take<C>(p.size));
      bias = widened<C>(p.bias, p.bias_dtype, p.size, 0, arena.take<C>(p.size));
    }
    chunks == 1 ? whole_rows() : in_chunks(arena.take<Moments>(p.rows * chunks));
  }
};

}  // namespace
}  // namespace convnorm::layer_norm

#include "ops/layer_norm/cpu/layer_norm_backward.h"

namespace convnorm::layer_norm {
namespace {

inline void run_forward(const Forward& p) {
  dispatch(p.dtype, [&](auto t) {
    using T = decltype(t);
    p.weight || p.bias ? RowsForward<T, true>(p).run() : RowsForward<T, false>(p).run();
  });
}

template <bool kColumns>
inline void run_backward(const Backward& p) {
  dispatch(p.dtype, [&](auto t) {
    using T = decltype(t);
    p.grad_weight ? RowsBackward<T, true>(p).template run<kColumns>()
                  : RowsBackward<T, false>(p).template run<kColumns>();
  });
}

}  // namespace
}  // namespace convnorm::layer_norm
