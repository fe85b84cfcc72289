// Forward and by input as implicit GEMM on plain multiply-adds: rows are pixels, columns are channels of the
// result. Any stride, dilation, groups, layout and dtype: the correct baseline that tensor cores are measured
// against.
#include "cuda/launch.h"
#include "ops/conv/cuda/conv_tile.cuh"

namespace convnorm::conv {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    igemm_kernel(__grid_constant__ const Problem q, int column_tiles) {
  using C = compute_t<T>;
  const Dense& d = q.d;
  __shared__ Slice<C> rows, columns;
  __shared__ Pixel pixels[kTile];
  const int thread = static_cast<int>(threadIdx.x), groups = static_cast<int>(d.groups);
  const std::int64_t group = blockIdx.x % groups, block = blockIdx.x / groups;
  const std::int64_t first_row = block / column_tiles * kTile, first_column = block % column_tiles * kTile;
  if (thread < kTile && first_row + thread < q.rows) pixels[thread] = q.pixel(first_row + thread);
  __syncthreads();

  const T* src = static_cast<const T*>(d.src) + group * d.red_c * d.src_c;
  const T* weight = static_cast<const T*>(d.weight);
  const Fetch from_src(thread, d.src_c == 1), from_weight(thread, true);
  // Threads lie along memory of the result as well: over channels, or over pixels.
  const bool channels_first = d.dst_c == 1;
  const int row = channels_first ? thread / 16 : thread % 16,
            column = channels_first ? thread % 16 : thread / 16;
  Sums<C> sums;
  for (int k0 = 0, chain = kDepth; k0 < q.reduction; k0 += kDepth, chain += kDepth) {
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      const int k = k0 + from_src.depth[i], m = from_src.at[i];
      std::int64_t offset = 0;
      const bool on = k < q.reduction && first_row + m < q.rows && q.source(pixels[m], q.tap(k), offset);
      from_src.put(rows, i, on ? cuda::load1(src + offset) : C{});
    }
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      const int k = k0 + from_weight.depth[i];
      const std::int64_t o = first_column + from_weight.at[i];
      const bool on = k < q.reduction && o < d.out_c;
      from_weight.put(columns, i, on ? cuda::load1(weight + q.weight(group, o, q.tap(k))) : C{});
    }
    __syncthreads();
    sums.add(rows, columns, row, column);
    if (chain % kChain == 0) sums.end_chain();
    __syncthreads();
  }
  sums.end_chain();
#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
    const int m = row * kMicro + i;
    if (first_row + m >= q.rows) continue;
#pragma unroll
    for (int j = 0; j < kMicro; ++j) {
      const std::int64_t o = first_column + column * kMicro + j;
      if (o >= d.out_c) continue;
      const std::int64_t channel = group * d.out_c + o;
      const C bias = d.bias ? cuda::load1(static_cast<const T*>(d.bias) + channel) : C{};
      write_sum<T>(d, pixels[m].dst + channel * d.dst_c, sums.all[i][j] + bias);
    }
  }
}

void run(const cuda::OnDevice& device, const Dense& dense) {
  const Problem q = problem_of(dense);
  const std::int64_t column_tiles = up_to(dense.out_c, kTile);
  dispatch(dense.dtype, [&](auto type) {
    device.launch(igemm_kernel<decltype(type)>, up_to(q.rows, kTile) * column_tiles * dense.groups, kThreads,
                  q, static_cast<int>(column_tiles));
  });
}

}  // namespace

void igemm_cuda(const Params& p) {
  const cuda::OnDevice device(p.device);
  if (p.pass == Pass::forward) return run(device, forward_problem(p));
  for (const Dense& d : by_input_problems(p)) run(device, d);
}

}  // namespace convnorm::conv
