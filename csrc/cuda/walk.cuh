// Which elements a thread of a norm's kernels sees.
//
// Both orders of memory have the same kernels. In rows a thread has V neighbouring channels and walks over
// rows; in planes V neighbouring elements of one channel, and walks over a piece of its images.
#pragma once

#include "cuda/plan.h"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace convnorm::cuda {

// Pieces are merged by blocks of 32 x 32 threads per 32 channels; threads of one have every 32nd piece.
inline constexpr int kMergeLanes = 32, kMergeWays = 32;

// Block and thread: made by the first lines of every kernel.
struct Place {
  std::int64_t image, piece, channel;  // the block's tile of channels
  int thread, lane, way;

  Place() = default;
  // Passes alternate between the two ends of the tensor, so that one starts on what the last left in L2.
  __device__ Place(const Plan& plan, bool backwards) {
    *this = of_block(plan, backwards ? plan.blocks() - 1 - blockIdx.x : blockIdx.x);
  }
  __device__ static Place of_block(const Plan& plan, std::int64_t block) {
    Place p;
    const std::int64_t per_image = plan.tiles * plan.pieces();
    p.image = plan.images == 1 ? 0 : block / per_image;
    block -= p.image * per_image;
    p.piece = block / plan.tiles;
    p.thread = static_cast<int>(threadIdx.x);
    p.lane = p.thread % plan.lanes;
    p.way = p.thread / plan.lanes;
    p.channel = block % plan.tiles;
    return p;
  }
};

// The thread's vectors of V elements, one by one.
template <bool kRows, int V>
struct Walk {
  std::int64_t offset;  // of the vector, in elements

  __device__ Walk(const Plan& plan, Place place) {
    const std::int64_t o = place.piece / plan.inner_pieces * plan.per_outer;
    outer_end_ = o + plan.per_outer < plan.outer ? o + plan.per_outer : plan.outer;
    outer_ = o + place.way;
    ways_ = plan.ways;
    if constexpr (kRows) {
      const std::int64_t c = (place.channel * plan.lanes + place.lane) * V;
      if (c >= plan.channels) outer_ = outer_end_;
      offset = (place.image * plan.outer + outer_) * plan.channels + c;
      step_ = plan.channels * plan.ways;
    } else {
      const std::int64_t i = place.piece % plan.inner_pieces * plan.per_inner;
      inner_ = inner_begin_ = i + place.lane * V;
      inner_end_ = i + plan.per_inner < plan.inner ? i + plan.per_inner : plan.inner;
      if (inner_ >= inner_end_) outer_ = outer_end_;
      offset = (outer_ * plan.channels + place.channel) * plan.inner + inner_;
      step_ = static_cast<std::int64_t>(plan.lanes) * V;
      image_ = plan.channels * plan.inner * plan.ways;
    }
  }
  __device__ std::int64_t outer() const { return outer_; }  // image, in rows the row
  __device__ bool more() const { return outer_ < outer_end_; }
  __device__ void next() {
    if constexpr (!kRows) {
      inner_ += step_;
      if (inner_ < inner_end_) {
        offset += step_;
        return;
      }
      offset += image_ - (inner_ - step_ - inner_begin_);
      inner_ = inner_begin_;
    } else {
      offset += step_;
    }
    outer_ += ways_;
  }

 private:
  std::int64_t outer_, outer_end_, ways_, step_;
  std::int64_t inner_, inner_begin_, inner_end_, image_;  // planes only
};

// Up to kUnroll vectors of a walk, loaded before the first is used.
template <class T, bool kRows, int V>
struct Batch {
  std::int64_t offset[kUnroll], outer[kUnroll];
  int count = 0;

  __device__ explicit Batch(Walk<kRows, V>& walk) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      offset[u] = walk.offset;
      outer[u] = walk.outer();
      if (!walk.more()) continue;
      ++count;
      walk.next();
    }
  }
  __device__ void load(Raw<T, V> (&raw)[kUnroll], const void* from) const {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (u < count) raw[u] = cuda::load<T, V>(static_cast<const T*>(from) + offset[u]);
  }
};

// How many channels a thread has, and which of them element v belongs to.
template <bool kRows, int V>
inline constexpr int kChannels = kRows ? V : 1;
template <bool kRows>
__device__ inline int channel_of(int v) {
  return kRows ? v : 0;
}

}  // namespace convnorm::cuda
