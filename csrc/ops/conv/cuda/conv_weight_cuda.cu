// By weight as implicit GEMM: rows are filters, columns are (tap, channel), the reduction runs over pixels.
// It is cut in splits, whose sums are added in order by a second kernel: the same bits every time, without
// atomics.
#include "cuda/launch.h"
#include "ops/conv/cuda/conv_tile.cuh"

namespace convnorm::conv {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    weight_kernel(__grid_constant__ const Problem q, __grid_constant__ const Splits s, compute_t<T>* parts) {
  using C = compute_t<T>;
  const Dense& d = q.d;
  __shared__ Slice<C> filters, columns;
  __shared__ Pixel pixels[kChain];
  const int thread = static_cast<int>(threadIdx.x);
  const int column_tiles = (q.reduction + kTile - 1) / kTile;
  const auto filter_tiles = static_cast<int>((d.out_c + kTile - 1) / kTile);
  const auto tiles = static_cast<unsigned>(s.tiles);
  const unsigned split = blockIdx.x / tiles, tile = blockIdx.x - split * tiles;
  const int first_column = static_cast<int>(tile % column_tiles) * kTile;
  const std::int64_t group = tile / column_tiles / filter_tiles;
  const std::int64_t first_filter = static_cast<std::int64_t>(tile / column_tiles % filter_tiles) * kTile;

  const T *src = static_cast<const T*>(d.src) + group * d.red_c * d.src_c,
          *dst = static_cast<const T*>(d.dst) + (group * d.out_c + first_filter) * d.dst_c;
  const Fetch from_dst(thread, d.dst_c != 1), from_src(thread, d.src_c != 1);
  Tap taps[kMicro];
#pragma unroll
  for (int i = 0; i < kMicro; ++i) taps[i] = q.tap(first_column + from_src.at[i]);

  Sums<C> sums;
  const std::int64_t begin = split * s.per_split,
                     end = begin + s.per_split < q.rows ? begin + s.per_split : q.rows;
  for (std::int64_t chain = begin; chain < end; chain += kChain) {
    if (chain + thread < end) pixels[thread] = q.pixel(chain + thread);
    __syncthreads();
    for (int k0 = 0; k0 < kChain && chain + k0 < end; k0 += kDepth) {
#pragma unroll
      for (int i = 0; i < kMicro; ++i) {
        const int k = k0 + from_dst.depth[i];
        const bool on = chain + k < end && first_filter + from_dst.at[i] < d.out_c;
        from_dst.put(filters, i, on ? cuda::load1(dst + pixels[k].dst + from_dst.at[i] * d.dst_c) : C{});
      }
#pragma unroll
      for (int i = 0; i < kMicro; ++i) {
        const int k = k0 + from_src.depth[i];
        std::int64_t offset = 0;
        const bool on = chain + k < end && first_column + from_src.at[i] < q.reduction &&
                        q.source(pixels[k], taps[i], offset);
        from_src.put(columns, i, on ? cuda::load1(src + offset) : C{});
      }
      __syncthreads();
      sums.add(filters, columns, thread / 16, thread % 16);
      __syncthreads();
    }
    sums.end_chain();
  }
#pragma unroll
  for (int i = 0; i < kMicro; ++i)
#pragma unroll
    for (int j = 0; j < kMicro; ++j) {
      const std::int64_t o = first_filter + thread / 16 * kMicro + i;
      const int column = first_column + thread % 16 * kMicro + j;
      if (o < d.out_c && column < q.reduction)
        parts[((split * d.groups + group) * d.out_c + o) * q.reduction + column] = sums.all[i][j];
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(__grid_constant__ const Problem q, std::int64_t splits, const compute_t<T>* parts) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t channels = q.d.groups * q.d.out_c, size = channels * q.reduction;
  if (i >= size) return;
  double all = 0;
  for (std::int64_t s = 0; s < splits; ++s) all += parts[s * size + i];
  const std::int64_t channel = i / q.reduction, group = channel / q.d.out_c;
  const Tap tap = q.tap(static_cast<int>(i - channel * q.reduction));
  cuda::store1(static_cast<T*>(q.d.weight) + q.weight(group, channel - group * q.d.out_c, tap),
               static_cast<compute_t<T>>(all));
}

}  // namespace

void igemm_weight_cuda(const Params& p) {
  const cuda::OnDevice device(p.device);
  const Problem q = problem_of(forward_problem(p));
  const Splits s = splits_of(q);
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    auto* parts = static_cast<compute_t<T>*>(p.workspace);
    device.launch(weight_kernel<T>, s.count * s.tiles, kThreads, q, s, parts);
    device.launch(merge_kernel<T>, up_to(p.output.c * q.reduction, kThreads), kThreads, q, s.count, parts);
  });
  bias_gradient_cuda(p);
}

}  // namespace convnorm::conv
