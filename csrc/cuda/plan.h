// How a norm is cut into blocks: by shape and dtype alone, so that sums have one order on every device. Plain
// C++: also read by the host and by tests.
//
// A block has kThreads threads and one piece of one tile of channels. `lanes` threads lie along memory, the
// other `ways` across it. In rows (channels innermost) a tile is lanes * vector channels and a piece some
// rows; in planes a tile is one channel, and a piece some images of it, or a segment of each of them.
#pragma once

#include "common/device.h"
#include "common/dtype.h"

namespace convnorm::cuda {

inline constexpr int kThreads = 256;

struct Plan {
  std::int64_t outer = 0, channels = 0, inner = 1;  // in rows, outer has all values of a channel
  int vector = 1, lanes = 1, ways = kThreads;
  std::int64_t tiles = 0;
  std::int64_t images = 1;                    // matrices one after the other, with channels of their own
  std::int64_t per_outer = 1, per_inner = 1;  // extent of a piece
  std::int64_t outer_pieces = 0, inner_pieces = 1;

  CONVNORM_HD std::int64_t pieces() const { return outer_pieces * inner_pieces; }
  CONVNORM_HD std::int64_t blocks() const { return images * tiles * pieces(); }
  // Values per channel in a piece.
  CONVNORM_HD std::int64_t count(std::int64_t piece) const {
    const std::int64_t o = piece / inner_pieces * per_outer, i = piece % inner_pieces * per_inner;
    const std::int64_t outers = outer - o < per_outer ? outer - o : per_outer;
    return outers * (inner - i < per_inner ? inner - i : per_inner);
  }
  // Two doubles per piece and channel, and two per channel.
  std::int64_t bytes() const { return (pieces() + 1) * images * channels * 16; }
  // Where the pair of a piece and of the first channel of an image is.
  CONVNORM_HD std::int64_t pair(std::int64_t piece, std::int64_t image) const {
    return (piece * images + image) * channels;
  }
};

// What a block leaves of a piece for each channel: two sums that its kernel names.
struct Piece {
  double mean, m2;
};

// How many multiples cover n.
inline std::int64_t up_to(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple; }

// Enough blocks to fill a large device several times; more would only make more sums to merge.
inline constexpr std::int64_t kBlocks = 1024;
inline constexpr std::int64_t kUnroll = 4;  // loads in flight per thread

// Elements of 16 bytes when `extent`, dense in memory, is made of such; doubles go one by one.
inline int vector_of(DType dtype, std::int64_t extent) {
  const int most = 16 / bytes(dtype);
  return dtype != DType::f64 && extent % most == 0 ? most : 1;
}

// The smallest power of two that is at least n, or `most`, which is one.
inline int lanes_for(std::int64_t n, int most) {
  int lanes = 1;
  while (lanes < n && lanes < most) lanes *= 2;
  return lanes;
}

// Matrices of `outer` rows of channels.
inline Plan rows_plan(DType dtype, std::int64_t outer, std::int64_t channels, std::int64_t images = 1) {
  Plan plan;
  plan.images = images;
  plan.outer = outer;
  plan.channels = channels;
  plan.vector = vector_of(dtype, plan.channels);
  plan.lanes = lanes_for(plan.channels / plan.vector, 32);
  plan.ways = kThreads / plan.lanes;
  plan.tiles = up_to(plan.channels, plan.lanes * plan.vector);
  const std::int64_t others = plan.tiles * images, wanted = kBlocks > others ? kBlocks / others : 1;
  const std::int64_t per_thread = up_to(up_to(plan.outer, plan.ways * wanted), kUnroll) * kUnroll;
  plan.per_outer = plan.ways * (per_thread < 8 ? 8 : per_thread);
  plan.outer_pieces = up_to(plan.outer, plan.per_outer);
  return plan;
}

// `outer` images of channels, each with a plane of `inner` values.
inline Plan planes_plan(DType dtype, std::int64_t outer, std::int64_t channels, std::int64_t inner) {
  constexpr std::int64_t kSegment = 16384, kLeast = 4096;  // values per image and per piece
  Plan plan;
  plan.outer = outer;
  plan.channels = plan.tiles = channels;
  plan.inner = inner;
  plan.vector = vector_of(dtype, plan.inner);
  plan.per_inner = plan.inner < kSegment ? plan.inner : kSegment;
  plan.inner_pieces = up_to(plan.inner, plan.per_inner);
  plan.lanes = lanes_for(plan.per_inner / plan.vector, kThreads);
  plan.ways = kThreads / plan.lanes;
  const std::int64_t for_blocks = up_to(plan.outer * plan.inner_pieces * plan.channels, kBlocks);
  const std::int64_t for_work = up_to(kLeast, plan.per_inner);
  const std::int64_t images = for_blocks > for_work ? for_blocks : for_work;
  plan.per_outer = images < plan.outer ? images : plan.outer;
  plan.outer_pieces = up_to(plan.outer, plan.per_outer);
  return plan;
}

}  // namespace convnorm::cuda
