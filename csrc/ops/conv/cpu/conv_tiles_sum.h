// What a multiplication of tiles is given. Each instruction set has multiply<pixels, filters>(TileSum), tiles
// of each, and UsingTiles, which lives as long as a thread multiplies.
//
// Include after conv_tiles_plan.h.
#pragma once

namespace convnorm::conv {
namespace {

// c (+)= sum over `count` blocks of a[m] at terms[j], by b at j.
struct TileSum {
  const bf16* a[2];           // first row of each tile of pixels
  std::int64_t row_bytes;     // from row to row
  const std::int64_t* terms;  // elements from a
  const bf16* b;              // two tiles per block
  std::int64_t b_step;        // elements from block to block
  std::int64_t count;
  bool first;  // starts from zero
  float* c;    // tiles one after the other: pixels, then filters
};

}  // namespace
}  // namespace convnorm::conv
