// Backward: sums of g and g (x - hi) in pieces, their merge, and the pass that writes the gradients. The mask
// of relu is computed again from x, unless a residual makes the output necessary.
//
// g (x - hi) sums to a small difference of large terms: in C over the vectors of one batch, then in double.
#include "cuda/launch.h"
#include "ops/batch_norm/cuda/batch_norm_affine.cuh"

namespace convnorm::batch_norm {
namespace {

template <class T>
struct Tensors {
  const T *grad_output, *x, *out;  // out only where relu is masked by it
  T *grad_input, *grad_residual;   // null when not wanted
  bool relu;
};

// One batch of a walk, masked.
template <class T, bool kRows, int V>
struct Loaded {
  Batch<T, kRows, V> batch;
  Raw<T, V> g[kUnroll], x[kUnroll], out[kUnroll];

  __device__ Loaded(const Tensors<T>& t, Walk<kRows, V>& walk, bool need_x) : batch(walk) {
    batch.load(g, t.grad_output);
    if (need_x) batch.load(x, t.x);
    if (t.out) batch.load(out, t.out);
  }
  // What relu let through, and x - hi.
  __device__ void at(const Tensors<T>& t, int u, int v, const Affine<compute_t<T>>& a, compute_t<T>& g_at,
                     compute_t<T>& d) const {
    using C = compute_t<T>;
    g_at = cuda::element(g[u], v);
    d = cuda::element(x[u], v) - a.hi;
    if (!t.relu) return;
    const C y = t.out ? cuda::element(out[u], v) : fma(d, a.scale, a.shift);
    if (y <= 0) g_at = 0;
  }
};

template <class T, bool kRows, int V>
__global__ void __launch_bounds__(kThreads, 2)
    sums_kernel(__grid_constant__ const Tensors<T> t, __grid_constant__ const Plan plan,
                __grid_constant__ const PerChannel at, double eps, Piece* pieces) {
  using C = compute_t<T>;
  constexpr int K = kChannels<kRows, V>;
  __shared__ double shared1[kThreads * K], shared2[kThreads * K];
  __shared__ Affine<C> shared[kRows ? kMostColumns<T> : 1];
  const Place place(plan, false);
  Affine<C> a[K];
  load_affine<kRows>(a, shared, plan, place, at, eps, {});
  double sum[K] = {}, dot[K] = {};
  for (Walk<kRows, V> walk(plan, place); walk.more();) {
    const Loaded<T, kRows, V> loaded(t, walk, true);
    C s[K] = {}, sd[K] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (u >= loaded.batch.count) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int k = channel_of<kRows>(v);
        C g, d;
        loaded.at(t, u, v, a[k], g, d);
        s[k] += g;
        sd[k] += g * d;
      }
    }
#pragma unroll
    for (int k = 0; k < K; ++k) sum[k] += s[k], dot[k] += sd[k];
  }
  const int columns = kRows ? plan.lanes * K : 1;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int i = kRows ? place.way * columns + place.lane * K + k : place.thread;
    shared1[i] = sum[k];
    shared2[i] = dot[k];
  }
  cuda::sum_rows(shared1, shared2, kThreads * K / columns, columns, place.thread, kThreads);
  const std::int64_t first = place.channel * columns;
  for (int i = place.thread; i < columns && first + i < plan.channels; i += kThreads)
    pieces[plan.pair(place.piece, place.image) + first + i] = {shared1[i], shared2[i]};
}

// grad_weight and grad_bias, and what the last pass takes of them (Terms).
template <class C>
__global__ void merge_sums_kernel(const Piece* pieces, __grid_constant__ const Plan plan,
                                  __grid_constant__ const PerChannel at, double eps, double* terms) {
  __shared__ double shared1[kMergeLanes * kMergeWays], shared2[kMergeLanes * kMergeWays];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kMergeLanes, way = thread / kMergeLanes;
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kMergeLanes + lane;
  const bool on = c < plan.channels;
  double sum = 0, dot = 0;
  if (on)
    for (std::int64_t i = way; i < plan.pieces(); i += kMergeWays) {
      const Piece piece = pieces[i * plan.channels + c];
      sum += piece.mean;
      dot += piece.m2;
    }
  shared1[thread] = sum;
  shared2[thread] = dot;
  cuda::sum_rows(shared1, shared2, kMergeWays, kMergeLanes, thread, kMergeLanes * kMergeWays);
  if (way != 0 || !on) return;
  const double mean = cuda::read(at.mean, c, 0), low = mean - static_cast<C>(mean);
  const double r = 1 / sqrt(cuda::read(at.var, c, 1) + eps),
               all = static_cast<double>(plan.outer * plan.inner);
  const double grad_bias = shared1[lane], grad_weight = r * (shared2[lane] - low * grad_bias);
  cuda::write(at.grad_bias, c, grad_bias);
  cuda::write(at.grad_weight, c, grad_weight);
  const double share = cuda::read(at.weight, c, 1) * r / all;
  terms[c] = share * grad_bias;
  terms[plan.channels + c] = share * grad_weight;
}

template <class T, bool kRows, int V>
__global__ void __launch_bounds__(kThreads, 2)
    gradients_kernel(__grid_constant__ const Tensors<T> t, __grid_constant__ const Plan plan,
                     __grid_constant__ const PerChannel at, double eps, __grid_constant__ const Terms terms) {
  using C = compute_t<T>;
  constexpr int K = kChannels<kRows, V>;
  __shared__ Affine<C> shared[kRows ? kMostColumns<T> : 1];
  const Place place(plan, true);
  Affine<C> a[K];
  load_affine<kRows>(a, shared, plan, place, at, eps, terms);
  const bool through = terms.level.data, need_x = through || (t.relu && !t.out);
  for (Walk<kRows, V> walk(plan, place); walk.more();) {
    const Loaded<T, kRows, V> loaded(t, walk, need_x);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (u >= loaded.batch.count) continue;
      C g[V], gx[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Affine<C>& of = a[channel_of<kRows>(v)];
        C d;
        loaded.at(t, u, v, of, g[v], d);
        gx[v] = through ? fma(of.scale, g[v], -fma(d, of.k2, of.k0)) : of.scale * g[v];
      }
      if (t.grad_input) cuda::store(t.grad_input + loaded.batch.offset[u], cuda::round<T, V>(gx));
      if (t.grad_residual) cuda::store(t.grad_residual + loaded.batch.offset[u], cuda::round<T, V>(g));
    }
  }
}

template <class T>
Tensors<T> tensors_of(const Backward& p) {
  return {static_cast<const T*>(p.grad_output.data), static_cast<const T*>(p.x.data),
          static_cast<const T*>(p.out.data),         static_cast<T*>(p.grad_input.data),
          static_cast<T*>(p.grad_residual.data),     p.relu};
}

// f.operator()<T, kRows, V>() for the kernels that a plan is for.
template <class F>
void with_kernel(const Backward& p, const Plan& plan, F f) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int V = cuda::kVector<T>;
    if (p.rows)
      plan.vector > 1 ? f.template operator()<T, true, V>() : f.template operator()<T, true, 1>();
    else
      plan.vector > 1 ? f.template operator()<T, false, V>() : f.template operator()<T, false, 1>();
  });
}

void merge_sums(const cuda::OnDevice& device, const Backward& p, const Plan& plan, const Piece* pieces,
                double* terms) {
  const std::int64_t blocks = up_to(plan.channels, kMergeLanes);
  const auto kernel = p.dtype == DType::f64 ? merge_sums_kernel<double> : merge_sums_kernel<float>;
  device.launch(kernel, blocks, kMergeLanes * kMergeWays, pieces, plan, p.at, p.eps, terms);
}

void backward(const Backward& p, const Plan& plan) {
  const cuda::OnDevice device(p.device);
  auto* pieces = static_cast<Piece*>(p.workspace);
  auto* sums = reinterpret_cast<double*>(pieces + plan.pair(plan.pieces(), 0));
  Terms terms;
  if (p.sums_given) {
    terms = {p.at.grad_bias, p.at.grad_weight, true};
  } else if (p.train || p.want_affine) {
    sums_pass(device, p, plan, pieces);
    merge_sums(device, p, plan, pieces, sums);
    if (p.train) terms = {{sums, DType::f64}, {sums + plan.channels, DType::f64}};
  }
  if (p.grad_input.data || p.grad_residual.data) gradients_pass(device, p, plan, terms);
}

}  // namespace

void sums_pass(const cuda::OnDevice& device, const Backward& p, const Plan& plan, Piece* pieces) {
  with_kernel(p, plan, [&]<class T, bool kRows, int V>() {
    device.launch(sums_kernel<T, kRows, V>, plan.blocks(), kThreads, tensors_of<T>(p), plan, p.at, p.eps,
                  pieces);
  });
}

void gradients_pass(const cuda::OnDevice& device, const Backward& p, const Plan& plan, const Terms& terms) {
  with_kernel(p, plan, [&]<class T, bool kRows, int V>() {
    device.launch(gradients_kernel<T, kRows, V>, plan.blocks(), kThreads, tensors_of<T>(p), plan, p.at, p.eps,
                  terms);
  });
}

void backward_rows_cuda(const Backward& p) { backward(p, rows_plan(p)); }
void backward_planes_cuda(const Backward& p) { backward(p, planes_plan(p)); }

}  // namespace convnorm::batch_norm
