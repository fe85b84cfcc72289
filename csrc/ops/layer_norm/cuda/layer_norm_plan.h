// How layer norm on CUDA is cut into blocks: by shape and dtype alone. Plain C++.
#pragma once

#include "cuda/plan.h"
#include "ops/layer_norm/layer_norm.h"

namespace convnorm::layer_norm {

// Along rows: `lanes` threads have a row, a block has kThreads / lanes of them. As planes of one image, whose
// channels are the rows.
inline cuda::Plan along_rows(DType dtype, std::int64_t rows, std::int64_t size) {
  cuda::Plan plan;
  plan.outer = plan.outer_pieces = 1;
  plan.channels = plan.tiles = rows;
  plan.inner = plan.per_inner = size;
  plan.vector = cuda::vector_of(dtype, size);
  plan.lanes = cuda::lanes_for(size / plan.vector, cuda::kThreads);
  plan.ways = cuda::kThreads / plan.lanes;
  return plan;
}

// What the backward keeps of a row, and pieces of columns.
inline std::int64_t backward_workspace(const Backward& p) {
  return p.rows * 32 + cuda::rows_plan(p.dtype, p.rows, p.size).bytes();
}

}  // namespace convnorm::layer_norm
