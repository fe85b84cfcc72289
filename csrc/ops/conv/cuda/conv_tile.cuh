// The matrix product of a block, shared by all passes: a tile of 64 x 64 from two slices of 16 in shared
// memory, 4 x 4 sums per thread. Sums of kChain terms are added up apart, which keeps rounding errors small
// in long reductions.
#pragma once

#include "cuda/vec.cuh"
#include "ops/conv/cuda/conv_problem.h"

namespace convnorm::conv {

// Rows of a slice are 16 bytes longer than the tile, so that its columns lie in different banks.
template <class C>
struct alignas(16) Slice {
  static constexpr int kPitch = kTile + 4;
  C at[kDepth * kPitch];
};

template <class C>
struct Sums {
  C chain[kMicro][kMicro] = {}, all[kMicro][kMicro] = {};

  __device__ void add(const Slice<C>& rows, const Slice<C>& columns, int row, int column) {
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      C a[kMicro], b[kMicro];
#pragma unroll
      for (int i = 0; i < kMicro; ++i) {
        a[i] = rows.at[k * Slice<C>::kPitch + row * kMicro + i];
        b[i] = columns.at[k * Slice<C>::kPitch + column * kMicro + i];
      }
#pragma unroll
      for (int i = 0; i < kMicro; ++i)
#pragma unroll
        for (int j = 0; j < kMicro; ++j) chain[i][j] = fma(a[i], b[j], chain[i][j]);
    }
  }
  __device__ void end_chain() {
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
      for (int j = 0; j < kMicro; ++j) all[i][j] += chain[i][j], chain[i][j] = 0;
  }
};

// Writes a complete sum to element `at` of the result: forward may ask for a residual and ReLU (NaN stays
// NaN).
template <class T, class C>
__device__ void write_sum(const Dense& d, std::int64_t at, C sum) {
  if (d.residual) sum += cuda::load1(static_cast<const T*>(d.residual) + at);
  cuda::store1(static_cast<T*>(d.dst) + at, d.relu && sum < 0 ? C{} : sum);
}

// A thread fetches 4 of the 64 x 16 elements of a slice; its neighbours lie along whichever is dense in
// memory.
struct Fetch {
  int at[kMicro], depth[kMicro];

  __device__ Fetch(int thread, bool along_depth) {
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      at[i] = along_depth ? thread / kDepth + i * (kTile / kMicro) : thread % kTile;
      depth[i] = along_depth ? thread % kDepth : thread / kTile + i * (kDepth / kMicro);
    }
  }
  template <class C>
  __device__ void put(Slice<C>& slice, int i, C value) const {
    slice.at[depth[i] * Slice<C>::kPitch + at[i]] = value;
  }
};

}  // namespace convnorm::conv
