// Forward and gradient by input: a few threads have a row, read it twice (the second time from cache) and
// write it once. Gradients of weight and bias: sums over pieces of the rows, merged in order by a second
// kernel.
#include "cuda/launch.h"
#include "cuda/statistics.cuh"
#include "ops/layer_norm/cuda/layer_norm_plan.h"

namespace convnorm::layer_norm {
namespace {

using cuda::Batch;
using cuda::kMergeLanes;
using cuda::kMergeWays;
using cuda::kThreads;
using cuda::kUnroll;
using cuda::Piece;
using cuda::Place;
using cuda::Plan;
using cuda::Raw;
using cuda::Walk;

// xhat = (x - hi) r - low: hi is the mean in C, and low what it lacks of the mean, times r.
template <class C>
struct Row {
  C hi, r, low;

  __device__ static Row of(double mean, double var, double eps) {
    const double r = 1 / sqrt(var + eps);
    const C hi = static_cast<C>(mean);
    return {hi, static_cast<C>(r), static_cast<C>((mean - hi) * r)};
  }
  __device__ C xhat(C x) const { return fma(x - hi, r, -low); }
};

// The calling thread's row, and its place along it.
struct Mine {
  Place place;
  int way;
  bool on;

  __device__ explicit Mine(const Plan& plan) {
    const int thread = static_cast<int>(threadIdx.x);
    way = thread / plan.lanes;
    place.piece = 0;
    place.thread = thread;
    place.lane = thread % plan.lanes;
    place.way = 0;
    place.channel = static_cast<std::int64_t>(blockIdx.x) * plan.ways + way;
    on = place.channel < plan.channels;
  }
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(const T* x, T* out, __grid_constant__ const Plan plan,
                   __grid_constant__ const ChannelRef weight, __grid_constant__ const ChannelRef bias,
                   double eps, double* means, double* vars) {
  using C = compute_t<T>;
  __shared__ double shared1[kThreads], shared2[kThreads];
  __shared__ C origin[kThreads];
  const Mine my(plan);
  cuda::ThreadSums<C, 1> sums{{0}, {0}, {0}};
  if (my.on) cuda::sum_thread<T, false, V>(sums, x, plan, my.place);
  if (my.place.lane == 0) origin[my.way] = sums.shift[0];
  __syncthreads();
  const double count = static_cast<double>(cuda::values_of<false, V>(plan, my.place)),
               all = static_cast<double>(plan.inner);
  const double start = origin[my.way], delta = sums.shift[0] - start;
  const int i = my.place.lane * plan.ways + my.way;
  shared1[i] = my.on && count > 0 ? sums.s1[0] + count * delta : 0;
  shared2[i] = my.on && count > 0 ? sums.s2[0] + delta * (2 * sums.s1[0] + count * delta) : 0;
  cuda::sum_rows(shared1, shared2, plan.lanes, plan.ways, my.place.thread, kThreads);
  if (!my.on) return;
  const double s1 = shared1[my.way], m2 = shared2[my.way] - s1 * s1 / all;
  const double mean = start + s1 / all, var = m2 < 0 ? 0 : m2 / all;
  if (my.place.lane == 0) means[my.place.channel] = mean, vars[my.place.channel] = var;
  const Row<C> row = Row<C>::of(mean, var, eps);
  const std::int64_t begin = my.place.channel * plan.inner;
  for (Walk<false, V> walk(plan, my.place); walk.more();) {
    const Batch<T, false, V> batch(walk);
    Raw<T, V> raw[kUnroll];
    batch.load(raw, x);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (u >= batch.count) continue;
      C y[V];
      const std::int64_t column = batch.offset[u] - begin;
#pragma unroll
      for (int v = 0; v < V; ++v)
        y[v] = fma(row.xhat(cuda::element(raw[u], v)), static_cast<C>(cuda::read(weight, column + v, 1)),
                   static_cast<C>(cuda::read(bias, column + v, 0)));
      cuda::store(out + batch.offset[u], cuda::round<T, V>(y));
    }
  }
}

template <class C>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(const double* means, const double* vars, std::int64_t rows, double eps, Row<C>* to) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < rows) to[i] = Row<C>::of(means[i], vars[i], eps);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    input_kernel(const T* grad_output, const T* x, T* grad_input, __grid_constant__ const Plan plan,
                 __grid_constant__ const ChannelRef weight, const Row<compute_t<T>>* rows) {
  using C = compute_t<T>;
  __shared__ double shared1[kThreads], shared2[kThreads];
  const Mine my(plan);
  const std::int64_t begin = my.place.channel * plan.inner;
  Row<C> row{};
  double level = 0, along = 0;
  if (my.on) row = rows[my.place.channel];
  for (Walk<false, V> walk(plan, my.place); my.on && walk.more();) {
    const Batch<T, false, V> batch(walk);
    Raw<T, V> g[kUnroll], xs[kUnroll];
    batch.load(g, grad_output);
    batch.load(xs, x);
    C sum = 0, dot = 0;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (u >= batch.count) continue;
        const C wg =
            cuda::element(g[u], v) * static_cast<C>(cuda::read(weight, batch.offset[u] - begin + v, 1));
        sum += wg;
        dot += wg * row.xhat(cuda::element(xs[u], v));
      }
    level += sum;
    along += dot;
  }
  const int i = my.place.lane * plan.ways + my.way;
  shared1[i] = level;
  shared2[i] = along;
  cuda::sum_rows(shared1, shared2, plan.lanes, plan.ways, my.place.thread, kThreads);
  const C mean_g = static_cast<C>(shared1[my.way] / static_cast<double>(plan.inner)),
          mean_dot = static_cast<C>(shared2[my.way] / static_cast<double>(plan.inner));
  for (Walk<false, V> walk(plan, my.place); my.on && walk.more();) {
    const Batch<T, false, V> batch(walk);
    Raw<T, V> g[kUnroll], xs[kUnroll];
    batch.load(g, grad_output);
    batch.load(xs, x);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (u >= batch.count) continue;
      C gx[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const C wg =
            cuda::element(g[u], v) * static_cast<C>(cuda::read(weight, batch.offset[u] - begin + v, 1));
        gx[v] = row.r * fma(-row.xhat(cuda::element(xs[u], v)), mean_dot, wg - mean_g);
      }
      cuda::store(grad_input + batch.offset[u], cuda::round<T, V>(gx));
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    columns_kernel(const T* grad_output, const T* x, __grid_constant__ const Plan plan,
                   const Row<compute_t<T>>* rows, Piece* pieces) {
  using C = compute_t<T>;
  __shared__ double shared1[kThreads * V], shared2[kThreads * V];
  const Place place(plan, false);
  double sum[V] = {}, dot[V] = {};
  for (Walk<true, V> walk(plan, place); walk.more();) {
    const Batch<T, true, V> batch(walk);
    Raw<T, V> g[kUnroll], xs[kUnroll];
    batch.load(g, grad_output);
    batch.load(xs, x);
    C s[V] = {}, sd[V] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (u >= batch.count) continue;
      const Row<C> row = rows[batch.outer[u]];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const C g_at = cuda::element(g[u], v);
        s[v] += g_at;
        sd[v] += g_at * row.xhat(cuda::element(xs[u], v));
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += s[v], dot[v] += sd[v];
  }
  const int columns = plan.lanes * V;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int i = place.way * columns + place.lane * V + v;
    shared1[i] = sum[v];
    shared2[i] = dot[v];
  }
  cuda::sum_rows(shared1, shared2, plan.ways, columns, place.thread, kThreads);
  const std::int64_t first = place.channel * columns;
  for (int i = place.thread; i < columns && first + i < plan.channels; i += kThreads)
    pieces[place.piece * plan.channels + first + i] = {shared1[i], shared2[i]};
}

__global__ void merge_columns_kernel(const Piece* pieces, __grid_constant__ const Plan plan,
                                     ChannelRef grad_weight, ChannelRef grad_bias) {
  __shared__ double shared1[kMergeLanes * kMergeWays], shared2[kMergeLanes * kMergeWays];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kMergeLanes, way = thread / kMergeLanes;
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kMergeLanes + lane;
  double sum = 0, dot = 0;
  for (std::int64_t i = way; c < plan.channels && i < plan.pieces(); i += kMergeWays) {
    const Piece piece = pieces[i * plan.channels + c];
    sum += piece.mean;
    dot += piece.m2;
  }
  shared1[thread] = sum;
  shared2[thread] = dot;
  cuda::sum_rows(shared1, shared2, kMergeWays, kMergeLanes, thread, kMergeLanes * kMergeWays);
  if (way != 0 || c >= plan.channels) return;
  cuda::write(grad_bias, c, shared1[lane]);
  cuda::write(grad_weight, c, shared2[lane]);
}

template <class T, int V>
void forward(const Forward& p, const Plan& plan) {
  cuda::OnDevice(p.device).launch(forward_kernel<T, V>, cuda::up_to(p.rows, plan.ways), kThreads,
                                  static_cast<const T*>(p.x), static_cast<T*>(p.out), plan,
                                  ChannelRef{const_cast<void*>(p.weight), p.weight_dtype},
                                  ChannelRef{const_cast<void*>(p.bias), p.bias_dtype}, p.eps, p.mean, p.var);
}

template <class T, int V>
void backward(const Backward& p, const Plan& plan) {
  const cuda::OnDevice device(p.device);
  const T *g = static_cast<const T*>(p.grad_output), *x = static_cast<const T*>(p.x);
  auto* rows = static_cast<Row<compute_t<T>>*>(p.workspace);
  auto* pieces = reinterpret_cast<Piece*>(static_cast<char*>(p.workspace) + p.rows * 32);
  device.launch(rows_kernel<compute_t<T>>, cuda::up_to(p.rows, kThreads), kThreads, p.mean, p.var, p.rows,
                p.eps, rows);
  if (p.grad_input)
    device.launch(input_kernel<T, V>, cuda::up_to(p.rows, plan.ways), kThreads, g, x,
                  static_cast<T*>(p.grad_input), plan,
                  ChannelRef{const_cast<void*>(p.weight), p.weight_dtype}, rows);
  if (!p.grad_weight_at.data) return;
  const Plan columns = cuda::rows_plan(p.dtype, p.rows, p.size);
  device.launch(columns_kernel<T, V>, columns.blocks(), kThreads, g, x, columns, rows, pieces);
  device.launch(merge_columns_kernel, cuda::up_to(p.size, kMergeLanes), kMergeLanes * kMergeWays, pieces,
                columns, p.grad_weight_at, p.grad_bias_at);
}

// f.operator()<T, V>()
template <class F>
void with_vector(DType dtype, int vector, F f) {
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    if (vector > 1)
      f.template operator()<T, cuda::kVector<T>>();
    else
      f.template operator()<T, 1>();
  });
}

}  // namespace

void forward_cuda(const Forward& p) {
  const Plan plan = along_rows(p.dtype, p.rows, p.size);
  with_vector(p.dtype, plan.vector, [&]<class T, int V>() { forward<T, V>(p, plan); });
}

void backward_cuda(const Backward& p) {
  const Plan plan = along_rows(p.dtype, p.rows, p.size);
  with_vector(p.dtype, plan.vector, [&]<class T, int V>() { backward<T, V>(p, plan); });
}

}  // namespace convnorm::layer_norm
