// Forward: statistics (two kernels: pieces, then their merge), and the pass that writes the result.
#include "cuda/launch.h"
#include "ops/batch_norm/cuda/batch_norm_statistics.cuh"

namespace convnorm::batch_norm {
namespace {

template <class T, bool kRows, int V>
__global__ void __launch_bounds__(kThreads, 2)
    apply_kernel(const T* x, const T* residual, T* out, __grid_constant__ const Plan plan,
                 __grid_constant__ const PerChannel at, double eps, bool relu) {
  using C = compute_t<T>;
  constexpr int K = kChannels<kRows, V>;
  __shared__ Affine<C> shared[kRows ? kMostColumns<T> : 1];
  const Place place(plan, true);
  Affine<C> a[K];
  load_affine<kRows>(a, shared, plan, place, at, eps, {});
  for (Walk<kRows, V> walk(plan, place); walk.more();) {
    const Batch<T, kRows, V> batch(walk);
    Raw<T, V> xs[kUnroll], rs[kUnroll];
    batch.load(xs, x);
    if (residual) batch.load(rs, residual);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (u < batch.count)
        cuda::store(out + batch.offset[u],
                    normalised<T, kRows, V>(xs[u], rs[u], residual != nullptr, a, relu));
  }
}

// f.operator()<T, kRows, V>() for the kernels that a plan is for.
template <class F>
void with_kernel(const Forward& p, const Plan& plan, F f) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int V = cuda::kVector<T>;
    if (p.rows)
      plan.vector > 1 ? f.template operator()<T, true, V>() : f.template operator()<T, true, 1>();
    else
      plan.vector > 1 ? f.template operator()<T, false, V>() : f.template operator()<T, false, 1>();
  });
}

void forward(const Forward& p, const Plan& plan) {
  const cuda::OnDevice device(p.device);
  if (p.train) {
    auto* pieces = static_cast<Piece*>(p.workspace);
    statistics_pass(device, p, plan, pieces);
    device.launch(merge_statistics_kernel, up_to(plan.channels, kMergeLanes), kMergeLanes * kMergeWays,
                  pieces, plan, p.at);
  }
  if (p.out.data) apply_pass(device, p, plan);
}

__global__ void update_kernel(ChannelRef mean, ChannelRef var, const double* batch, std::int64_t channels,
                              double momentum, double unbiased) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= channels) return;
  const double keep = 1 - momentum;
  cuda::write(mean, c, momentum * batch[c] + keep * cuda::read(mean, c, 0));
  cuda::write(var, c, momentum * unbiased * batch[channels + c] + keep * cuda::read(var, c, 0));
}

}  // namespace

void statistics_pass(const cuda::OnDevice& device, const Forward& p, const Plan& plan, Piece* pieces) {
  with_kernel(p, plan, [&]<class T, bool kRows, int V>() {
    device.launch(statistics_kernel<T, kRows, V>, plan.blocks(), kThreads, static_cast<const T*>(p.x.data),
                  plan, pieces);
  });
}

void apply_pass(const cuda::OnDevice& device, const Forward& p, const Plan& plan) {
  with_kernel(p, plan, [&]<class T, bool kRows, int V>() {
    device.launch(apply_kernel<T, kRows, V>, plan.blocks(), kThreads, static_cast<const T*>(p.x.data),
                  static_cast<const T*>(p.residual.data), static_cast<T*>(p.out.data), plan, p.at, p.eps,
                  p.relu);
  });
}

void forward_rows_cuda(const Forward& p) { forward(p, rows_plan(p)); }
void forward_planes_cuda(const Forward& p) { forward(p, planes_plan(p)); }

void update_cuda(const Update& p) {
  cuda::OnDevice(p.device).launch(update_kernel, up_to(p.channels, kThreads), kThreads, p.mean, p.var,
                                  p.batch, p.channels, p.momentum, p.unbiased);
}

}  // namespace convnorm::batch_norm
