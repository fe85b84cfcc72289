// Adaptive max pooling, forward. A thread has one output of V neighbouring channels and walks over its window
// in order; with V = 1 any strides. Large windows of planes have a warp: lanes take every 32nd position, and
// then pairs of them agree on the better one, which is the same whatever the order.
#include "cuda/image.cuh"
#include "cuda/launch.h"
#include "ops/max_pool/cuda/adaptive_max_pool_problem.h"
#include "ops/max_pool/cuda/max_pool_codes.cuh"

namespace convnorm::max_pool {
namespace {

struct Box {
  int d0, d1, h0, h1, w0, w1;

  __device__ Box(const Adaptive& q, const int (&o)[kSpatial]) {
    q.axis[0].span(o[0], d0, d1);
    q.axis[1].span(o[1], h0, h1);
    q.axis[2].span(o[2], w0, w1);
  }
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 4)
    adaptive_kernel(const T* input, T* output, void* indices, __grid_constant__ const Adaptive q,
                    __grid_constant__ const cuda::Steps in, __grid_constant__ const cuda::Steps out,
                    __grid_constant__ const cuda::Steps at) {
  using C = compute_t<T>;
  const cuda::ImageThread my(q.outputs, V);
  if (!my.on) return;
  const Box box(q, my.at);
  C best[V];
  int where[V];
#pragma unroll
  for (int v = 0; v < V; ++v) best[v] = -static_cast<C>(INFINITY), where[v] = q.index(box.d0, box.h0, box.w0);

  const T* from = input + my.n * in.n + my.c * in.c;
  for (int d = box.d0; d < box.d1; ++d)
    for (int h = box.h0; h < box.h1; ++h) {
      const T* row = from + d * in.s[0] + h * in.s[1];
      for (int w = box.w0; w < box.w1; ++w) {
        const int here = q.index(d, h, w);
        const cuda::Raw<T, V> raw = cuda::load<T, V>(row + w * in.s[2]);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const C x = cuda::element(raw, v);
          if (x > best[v] || x != x) best[v] = x, where[v] = here;
        }
      }
    }
  cuda::store(output + out(my.n, my.c, my.at), cuda::round<T, V>(best));
  if (q.record != Argmax::none) store_codes(q.record, indices, at(my.n, my.c, my.at), where);
}

// Whether (y, j) is kept rather than (x, i): the greater, of equal ones the first, of several NaN the last.
template <class C>
__device__ inline bool better(C y, int j, C x, int i) {
  if (x != x) return y != y && j > i;
  return y != y || y > x || (y == x && j < i);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    warp_kernel(const T* input, T* output, void* indices, __grid_constant__ const Adaptive q,
                __grid_constant__ const cuda::Steps in, __grid_constant__ const cuda::Steps out,
                __grid_constant__ const cuda::Steps at, std::int64_t total) {
  using C = compute_t<T>;
  const std::int64_t warp = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (warp >= total) return;  // the whole warp
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t n = warp / q.outputs.count;
  int c, o[kSpatial];
  q.outputs.place(static_cast<std::uint32_t>(warp - n * q.outputs.count), c, o);
  const Box box(q, o);
  const int columns = box.w1 - box.w0, rows = box.h1 - box.h0, count = (box.d1 - box.d0) * rows * columns;
  const T* from = input + n * in.n + c * in.c;
  C best = -static_cast<C>(INFINITY);
  int where = q.index(box.d0, box.h0, box.w0);
  for (int i = lane; i < count; i += 32) {
    const int line = i / columns, w = box.w0 + i - line * columns;
    const int d = box.d0 + line / rows, h = box.h0 + line % rows;
    const C x = cuda::load1(from + d * in.s[0] + h * in.s[1] + w * in.s[2]);
    if (x > best || x != x) best = x, where = q.index(d, h, w);
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    const C y = __shfl_xor_sync(0xffffffffu, best, mask);
    const int j = __shfl_xor_sync(0xffffffffu, where, mask);
    if (better(y, j, best, where)) best = y, where = j;
  }
  if (lane != 0) return;
  cuda::store1(output + out(n, c, o), best);
  const int code[1] = {where};
  if (q.record != Argmax::none) store_codes(q.record, indices, at(n, c, o), code);
}

template <class T, int V>
void forward(const Params& p, const void* input, void* output, void* indices) {
  const Adaptive q = adaptive_of(p, V);
  cuda::OnDevice(p.device).launch(adaptive_kernel<T, V>, p.n * q.outputs.blocks(), kThreads,
                                  static_cast<const T*>(input), static_cast<T*>(output), indices, q,
                                  cuda::steps_of(p.input), cuda::steps_of(p.output),
                                  cuda::steps_of(p.argmax));
}

}  // namespace

void adaptive_channels_cuda(const Params& p, const void* input, void* output, void* indices) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    forward<T, cuda::kVector<T>>(p, input, output, indices);
  });
}

void adaptive_direct_cuda(const Params& p, const void* input, void* output, void* indices) {
  dispatch(p.dtype, [&](auto type) { forward<decltype(type), 1>(p, input, output, indices); });
}

void adaptive_warp_cuda(const Params& p, const void* input, void* output, void* indices) {
  const Adaptive q = adaptive_of(p, 1);
  const std::int64_t total = p.n * q.outputs.count, warps = kThreads / 32;
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    cuda::OnDevice(p.device).launch(warp_kernel<T>, (total + warps - 1) / warps, kThreads,
                                    static_cast<const T*>(input), static_cast<T*>(output), indices, q,
                                    cuda::steps_of(p.input), cuda::steps_of(p.output),
                                    cuda::steps_of(p.argmax), total);
  });
}

}  // namespace convnorm::max_pool
