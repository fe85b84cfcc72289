// Depthwise convolution, forward and by input. A block keeps the filters of its channels in shared memory. A
// thread takes the filter's taps row by row into registers and moves them over its strip: a pixel is loaded
// once per row of taps for all windows of the strip that hold it.
#include "cuda/launch.h"
#include "ops/conv/cuda/conv_depthwise.cuh"
#include "ops/conv/cuda/conv_tile.cuh"

namespace convnorm::conv {
namespace {

// The filters of the block's channels, a tap of all of them after the other.
template <class T, int V>
__device__ inline void load_filters(compute_t<T>* filters, const Strips& q, int tile) {
  const Dense& d = q.d;
  const int columns = q.lanes * V;
  const std::int64_t first = static_cast<std::int64_t>(tile) * columns;
  for (int i = static_cast<int>(threadIdx.x); i < columns * q.taps; i += kThreads) {
    const int column = i / q.taps, tap = i - column * q.taps;
    auto w = static_cast<std::uint32_t>(tap);
    std::uint32_t h = q.by_taps_w.split(w);
    const std::uint32_t depth = q.by_taps_h.split(h);
    if (first + column < q.channels())
      filters[tap * columns + column] =
          cuda::load1(static_cast<const T*>(d.weight) + (first + column) * d.weight_group +
                      depth * d.axis[0].weight_step + h * d.axis[1].weight_step +
                      static_cast<int>(w) * d.axis[2].weight_step);
  }
  __syncthreads();
}

template <class T, int V, int kTaps, int kStep>
__device__ inline void add_row(compute_t<T> (&sums)[kStrip][V], const T* row, const Axis& w, int o,
                               const compute_t<T>* filter, int columns) {
  using C = compute_t<T>;
  C taps[kTaps][V];
#pragma unroll
  for (int t = 0; t < kTaps; ++t)
#pragma unroll
    for (int v = 0; v < V; ++v) taps[t][v] = t < w.taps ? filter[t * columns + v] : C{};
  const Covered<T, V, kTaps, kStep> x(row, w, o);
#pragma unroll
  for (int i = 0; i < x.kCount; ++i) {
    if (!x.inside(i)) continue;  // not times zero: weights may be infinite
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      const int t = i - j * kStep;
      if (t < 0 || t >= kTaps || t >= w.taps) continue;
#pragma unroll
      for (int v = 0; v < V; ++v)
        sums[j][v] = fma(cuda::element(x.raw[i], v), taps[t < 0 ? 0 : t][v], sums[j][v]);
    }
  }
}

template <class T, int V>
__device__ inline void write_vector(const Dense& d, std::int64_t at, compute_t<T> (&sum)[V]) {
  using C = compute_t<T>;
  if (d.residual) {
    const cuda::Raw<T, V> residual = cuda::load<T, V>(static_cast<const T*>(d.residual) + at);
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += cuda::element(residual, v);
  }
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (d.relu && sum[v] < 0) sum[v] = C{};
  cuda::store(static_cast<T*>(d.dst) + at, cuda::round<T, V>(sum));
}

template <class T, int V, int kTaps, int kStep>
__global__ void __launch_bounds__(kThreads, kTaps > 3 || kStep == 2 ? 1 : 2)
    depthwise_kernel(__grid_constant__ const Strips q) {
  using C = compute_t<T>;
  __shared__ C filters[kMostTaps * kColumns<V>];
  const Dense& d = q.d;
  const int tile = static_cast<int>(blockIdx.x % q.tiles), columns = q.lanes * V;
  load_filters<T, V>(filters, q, tile);
  const Lane my(q, tile, V);
  const std::int64_t strip = static_cast<std::int64_t>(blockIdx.x / q.tiles) * q.ways + my.way;
  if (!my.on || strip >= q.total) return;
  const auto [n, o] = q.at(strip);
  C sums[kStrip][V];
#pragma unroll
  for (int j = 0; j < kStrip; ++j)
#pragma unroll
    for (int v = 0; v < V; ++v)
      sums[j][v] = d.bias ? cuda::load1(static_cast<const T*>(d.bias) + my.channel + v) : C{};

  const T* src = static_cast<const T*>(d.src) + n * d.src_n + my.channel * d.src_c;
  const C* filter = filters + my.lane * V;
  for (int a = 0; a < d.axis[0].taps; ++a)
    for (int b = 0; b < d.axis[1].taps; ++b, filter += d.axis[2].taps * columns) {
      const std::int64_t z = q.source(0, o[0], a), y = q.source(1, o[1], b);
      if (z < 0 || z >= d.axis[0].source || y < 0 || y >= d.axis[1].source) continue;
      add_row<T, V, kTaps, kStep>(sums, src + z * d.axis[0].source_stride + y * d.axis[1].source_stride,
                                  d.axis[2], o[2], filter, columns);
    }
  const std::int64_t to =
      n * d.dst_n + my.channel * d.dst_c + o[0] * d.axis[0].out_stride + o[1] * d.axis[1].out_stride;
#pragma unroll
  for (int j = 0; j < kStrip; ++j)
    if (o[2] + j < d.axis[2].out) write_vector<T, V>(d, to + (o[2] + j) * d.axis[2].out_stride, sums[j]);
}

template <class T, int V>
void run(const cuda::OnDevice& device, const Dense& dense) {
  const Strips q = strips_of(dense, V);
  with_window(q, [&]<int kTaps, int kStep>() {
    device.launch(depthwise_kernel<T, V, kTaps, kStep>, up_to(q.total, q.ways) * q.tiles, kThreads, q);
  });
}

template <bool kVectors>
void depthwise(const Params& p) {
  const cuda::OnDevice device(p.device);
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int V = kVectors ? cuda::kVector<T> : 1;
    if (p.pass == Pass::forward) return run<T, V>(device, forward_problem(p));
    for (const Dense& d : by_input_problems(p)) run<T, V>(device, d);
  });
}

}  // namespace

void depthwise_channels_cuda(const Params& p) { depthwise<true>(p); }
void depthwise_rows_cuda(const Params& p) { depthwise<false>(p); }

}  // namespace convnorm::conv
