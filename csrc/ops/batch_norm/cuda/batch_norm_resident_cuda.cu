// Training in one kernel, channels innermost: x is read once and stays in shared memory. All blocks run at
// the same time. Each takes some of the two-pass kernels' blocks, one after the other: it sums their pieces
// and keeps their vectors; all wait; the pieces are merged, 32 channels by a block; all wait; each normalises
// what it kept. Pieces, their merge and the last step are those of the two passes, and so are the bits: the
// choice between them may depend on how much the device holds.
//
// A thread keeps and takes back its own vectors, so they lie as its turns come, neighbours side by side.
#include "cuda/grid.cuh"
#include "cuda/launch.h"
#include "ops/batch_norm/cuda/batch_norm_statistics.cuh"

namespace convnorm::batch_norm {
namespace {

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    resident_kernel(const T* x, const T* residual, T* out, __grid_constant__ const Plan plan,
                    __grid_constant__ const PerChannel at, double eps, bool relu, Piece* pieces) {
  using C = compute_t<T>;
  __shared__ Scratch<T, true, V> shared;
  __shared__ Affine<C> affines[kMostColumns<T>];
  T* const kept = static_cast<T*>(cuda::dynamic_shared());
  const std::int64_t per_turn = plan.per_outer / plan.ways * kThreads * V;
  const auto slot = [&](std::int64_t turn, int i) {
    return kept + turn * per_turn + (static_cast<std::int64_t>(i) * kThreads + threadIdx.x) * V;
  };

  std::int64_t turn = 0;
  for (std::int64_t block = blockIdx.x; block < plan.blocks(); block += gridDim.x, ++turn) {
    int i = 0;
    piece_statistics<T, true, V>(x, plan, Place::of_block(plan, block), pieces, shared,
                                 [&](const Raw<T, V>(&raw)[kUnroll], int count) {
#pragma unroll
                                   for (int u = 0; u < kUnroll; ++u)
                                     if (u < count) cuda::store(slot(turn, i++), raw[u]);
                                 });
    __syncthreads();
  }
  cuda::wait_for_grid();
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kMergeLanes; first < plan.channels;
       first += static_cast<std::int64_t>(gridDim.x) * kMergeLanes) {
    merge_channels(pieces, plan, at, first, shared.one, shared.two, kThreads);
    __syncthreads();
  }
  cuda::wait_for_grid();
  turn = 0;
  for (std::int64_t block = blockIdx.x; block < plan.blocks(); block += gridDim.x, ++turn) {
    const Place place = Place::of_block(plan, block);
    Affine<C> a[V];
    load_affine<true>(a, affines, plan, place, at, eps, {});
    int i = 0;
    for (Walk<true, V> walk(plan, place); walk.more();) {
      const Batch<T, true, V> batch(walk);
      Raw<T, V> rs[kUnroll];
      if (residual) batch.load(rs, residual);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (u < batch.count)
          cuda::store(out + batch.offset[u], normalised<T, true, V>(cuda::load<T, V>(slot(turn, i++)), rs[u],
                                                                    residual != nullptr, a, relu));
    }
    __syncthreads();
  }
}

// How many blocks, and what each keeps.
struct Residence {
  int blocks = 0;
  std::int64_t bytes = 0;
};

// Two blocks per multiprocessor where all x fits so, else one; no block where it does not. The device is
// current.
template <class T, int V>
Residence residence_of(const Plan& plan, int device) {
  const auto ask = [&](cudaDeviceAttr what) {
    int value = 0;
    cuda::require(cudaDeviceGetAttribute(&value, what, device), "cudaDeviceGetAttribute");
    return value;
  };
  if (ask(cudaDevAttrCooperativeLaunch) == 0) return {};
  const int processors = ask(cudaDevAttrMultiProcessorCount),
            most = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  cudaFuncAttributes of = {};
  cuda::require(cudaFuncGetAttributes(&of, resident_kernel<T, V>), "cudaFuncGetAttributes");
  const std::int64_t per_turn = plan.per_outer / plan.ways * kThreads * V * static_cast<int>(sizeof(T));
  for (int together = 2; together > 0; --together) {
    const std::int64_t blocks = processors * together, bytes = up_to(plan.blocks(), blocks) * per_turn;
    if (bytes + static_cast<std::int64_t>(of.sharedSizeBytes) > most) continue;
    cuda::require(cudaFuncSetAttribute(resident_kernel<T, V>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(bytes)),
                  "cudaFuncSetAttribute");
    int fit = 0;
    cuda::require(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, resident_kernel<T, V>, kThreads,
                                                                static_cast<std::size_t>(bytes)),
                  "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    if (fit >= together) return {static_cast<int>(blocks < plan.blocks() ? blocks : plan.blocks()), bytes};
  }
  return {};
}

// f.operator()<T, V>() for the kernel that a plan is for.
template <class F>
auto with_kernel(const Forward& p, const Plan& plan, F f) {
  return dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int V = cuda::kVector<T>;
    return plan.vector > 1 ? f.template operator()<T, V>() : f.template operator()<T, 1>();
  });
}

}  // namespace

const char* resident_refusal_cuda(const Forward& p) {
  if (!p.rows) return "channels are not innermost: the planes method is for them";
  if (!p.train || !p.out.data) return "statistics are given, or are all that is wanted";
  const cuda::OnDevice device(p.device);
  const Plan plan = rows_plan(p);
  const Residence found =
      with_kernel(p, plan, [&]<class T, int V>() { return residence_of<T, V>(plan, p.device.index); });
  return found.blocks > 0 ? nullptr : "the input does not fit in this device's shared memory";
}

void forward_resident_cuda(const Forward& p) {
  const cuda::OnDevice device(p.device);
  const Plan plan = rows_plan(p);
  with_kernel(p, plan, [&]<class T, int V>() {
    const Residence found = residence_of<T, V>(plan, p.device.index);
    device.launch_together(resident_kernel<T, V>, found.blocks, kThreads,
                           static_cast<std::size_t>(found.bytes), static_cast<const T*>(p.x.data),
                           static_cast<const T*>(p.residual.data), static_cast<T*>(p.out.data), plan, p.at,
                           p.eps, p.relu, static_cast<Piece*>(p.workspace));
  });
}

}  // namespace convnorm::batch_norm
