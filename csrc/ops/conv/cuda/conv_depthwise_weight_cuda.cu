// Depthwise convolution, by weight. A block has one row of taps and a piece of the strips: a thread loads the
// gradients of a strip, and the pixels under its windows, once for all taps of the row. Sums of a thread are
// short; they are added up in double, over the block, and then over pieces in their order by a second kernel.
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "ops/conv/cuda/conv_depthwise.cuh"

namespace convnorm::conv {
namespace {

// sums[t] += the products of a strip and the pixels at tap t. Sums of taps that the row does not have are
// never read.
template <class T, int V, int kTaps, int kStep>
__device__ inline void add_strip(compute_t<T> (&sums)[kTaps][V], const T* row, const T* grads, const Axis& w,
                                 int o) {
  const Covered<T, V, kTaps, kStep> x(row, w, o);
  cuda::Raw<T, V> g[kStrip];
#pragma unroll
  for (int j = 0; j < kStrip; ++j)
    if (o + j < w.out) g[j] = cuda::load<T, V>(grads + (o + j) * w.out_stride);
#pragma unroll
  for (int i = 0; i < x.kCount; ++i) {
    if (!x.inside(i)) continue;
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      const int t = i - j * kStep;
      if (t < 0 || t >= kTaps || o + j >= w.out) continue;
#pragma unroll
      for (int v = 0; v < V; ++v)
        sums[t < 0 ? 0 : t][v] =
            fma(cuda::element(x.raw[i], v), cuda::element(g[j], v), sums[t < 0 ? 0 : t][v]);
    }
  }
}

// Adds up the threads of each channel and writes the piece's sums; two taps at a time.
template <class C, int V, int kTaps>
__device__ inline void write_piece(const C (&sums)[kTaps][V], const Strips& q, const Lane& my, int tile,
                                   double* to) {
  __shared__ double one[kThreads * V], two[kThreads * V];
  const int columns = q.lanes * V, thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int t = 0; t < kTaps; t += 2) {
    if (t >= q.d.axis[2].taps) break;
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int i = my.way * columns + my.lane * V + v;
      one[i] = sums[t][v];
      two[i] = t + 1 < kTaps ? sums[t + 1 < kTaps ? t + 1 : t][v] : 0;
    }
    cuda::sum_rows(one, two, q.ways, columns, thread, kThreads);
    const std::int64_t first = static_cast<std::int64_t>(tile) * columns;
    for (int i = thread; i < columns && first + i < q.channels(); i += kThreads) {
      to[t * q.channels() + first + i] = one[i];
      if (t + 1 < q.d.axis[2].taps) to[(t + 1) * q.channels() + first + i] = two[i];
    }
  }
}

template <class T, int V, int kTaps, int kStep>
__global__ void __launch_bounds__(kThreads, kTaps > 3 ? 1 : 2)
    depthwise_weight_kernel(__grid_constant__ const Strips q, __grid_constant__ const Pieces pieces,
                            double* parts) {
  using C = compute_t<T>;
  const Dense& d = q.d;
  const int tile = static_cast<int>(blockIdx.x % q.tiles);
  const auto rows = static_cast<int>(d.axis[0].taps * d.axis[1].taps);
  const auto rest = static_cast<int>(blockIdx.x / q.tiles);
  const int row = rest % rows, a = row / static_cast<int>(d.axis[1].taps),
            b = row - a * static_cast<int>(d.axis[1].taps);
  const std::int64_t piece = rest / rows, begin = piece * pieces.per_piece;
  const std::int64_t end = begin + pieces.per_piece < q.total ? begin + pieces.per_piece : q.total;
  const Lane my(q, tile, V);
  const T *src = static_cast<const T*>(d.src) + my.channel * d.src_c,
          *dst = static_cast<const T*>(d.dst) + my.channel * d.dst_c;
  C sums[kTaps][V] = {};
  for (std::int64_t strip = begin + my.way; my.on && strip < end; strip += q.ways) {
    const auto [n, o] = q.at(strip);
    const std::int64_t z = q.source(0, o[0], a), y = q.source(1, o[1], b);
    if (z < 0 || z >= d.axis[0].source || y < 0 || y >= d.axis[1].source) continue;
    add_strip<T, V, kTaps, kStep>(
        sums, src + n * d.src_n + z * d.axis[0].source_stride + y * d.axis[1].source_stride,
        dst + n * d.dst_n + o[0] * d.axis[0].out_stride + o[1] * d.axis[1].out_stride, d.axis[2], o[2]);
  }
  write_piece<C, V, kTaps>(sums, q, my, tile, parts + (piece * q.taps + row * d.axis[2].taps) * q.channels());
}

constexpr int kMergeLanes = 32, kMergeWays = kThreads / kMergeLanes;

// A block has 32 of the weights, threads of one every 8th piece.
template <class T>
__global__ void __launch_bounds__(kThreads)
    depthwise_merge_kernel(const double* parts, __grid_constant__ const Strips q, std::int64_t pieces) {
  __shared__ double sums[kThreads], unused[kThreads];
  const Dense& d = q.d;
  const int lane = static_cast<int>(threadIdx.x % kMergeLanes),
            way = static_cast<int>(threadIdx.x / kMergeLanes);
  const std::int64_t weights = q.taps * q.channels(),
                     i = static_cast<std::int64_t>(blockIdx.x) * kMergeLanes + lane;
  double sum = 0;
  if (i < weights)
    for (std::int64_t piece = way; piece < pieces; piece += kMergeWays) sum += parts[piece * weights + i];
  sums[threadIdx.x] = sum;
  unused[threadIdx.x] = 0;
  cuda::sum_rows(sums, unused, kMergeWays, kMergeLanes, static_cast<int>(threadIdx.x), kThreads);
  if (way != 0 || i >= weights) return;
  const std::int64_t channel = i % q.channels();
  auto w = static_cast<std::uint32_t>(i / q.channels());
  std::uint32_t h = q.by_taps_w.split(w);
  const std::uint32_t depth = q.by_taps_h.split(h);
  cuda::store1(static_cast<T*>(d.weight) + channel * d.weight_group + depth * d.axis[0].weight_step +
                   h * d.axis[1].weight_step + w * d.axis[2].weight_step,
               static_cast<compute_t<T>>(sums[lane]));
}

template <bool kVectors>
void depthwise_weight(const Params& p) {
  const cuda::OnDevice device(p.device);
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int V = kVectors ? cuda::kVector<T> : 1;
    const Strips q = strips_of(forward_problem(p), V);
    const Pieces pieces = pieces_of(q);
    const std::int64_t rows = q.d.axis[0].taps * q.d.axis[1].taps;
    auto* parts = static_cast<double*>(p.workspace);
    with_window(q, [&]<int kTaps, int kStep>() {
      device.launch(depthwise_weight_kernel<T, V, kTaps, kStep>, q.tiles * rows * pieces.count, kThreads, q,
                    pieces, parts);
    });
    device.launch(depthwise_merge_kernel<T>, up_to(q.taps * q.channels(), kMergeLanes), kThreads, parts, q,
                  pieces.count);
  });
  bias_gradient_cuda(p);
}

}  // namespace

void depthwise_channels_weight_cuda(const Params& p) { depthwise_weight<true>(p); }
void depthwise_rows_weight_cuda(const Params& p) { depthwise_weight<false>(p); }

}  // namespace convnorm::conv
