// A thread has one element of the result of V neighbouring channels: forward an output, whose window it sums
// in chains of 16; backward a position, whose gradient it gathers from the windows that hold it, and writes
// once.
#include "cuda/image.cuh"
#include "cuda/launch.h"
#include "cuda/vec.cuh"
#include "ops/avg_pool/cuda/avg_pool_problem.h"

namespace convnorm::avg_pool {
namespace {

constexpr int kThreads = cuda::kImageThreads, kChain = 16;

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 3)
    forward_kernel(const T* input, T* output, __grid_constant__ const Problem q,
                   __grid_constant__ const cuda::Steps in, __grid_constant__ const cuda::Steps out) {
  using C = compute_t<T>;
  const cuda::ImageThread my(q.outputs, V);
  if (!my.on) return;
  int d0, d1, h0, h1, w0, w1;
  q.axis[0].span(my.at[0], d0, d1);
  q.axis[1].span(my.at[1], h0, h1);
  q.axis[2].span(my.at[2], w0, w1);
  C sum[V] = {}, chain[V] = {};
  int length = 0;
  const T* from = input + my.n * in.n + my.c * in.c;
  for (int d = d0; d < d1; ++d)
    for (int h = h0; h < h1; ++h) {
      const T* row = from + d * in.s[0] + h * in.s[1];
      for (int w = w0; w < w1; ++w) {
        const cuda::Raw<T, V> raw = cuda::load<T, V>(row + w * in.s[2]);
#pragma unroll
        for (int v = 0; v < V; ++v) chain[v] += cuda::element(raw, v);
        if (++length % kChain != 0) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += chain[v], chain[v] = 0;
      }
    }
  const C divisor = static_cast<C>(q.divisor_of(my.at[0], my.at[1], my.at[2]));
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = (sum[v] + chain[v]) / divisor;
  cuda::store(output + out(my.n, my.c, my.at), cuda::round<T, V>(sum));
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 3)
    backward_kernel(const T* grad_output, T* grad_input, __grid_constant__ const Problem q,
                    __grid_constant__ const cuda::Steps in, __grid_constant__ const cuda::Steps out) {
  using C = compute_t<T>;
  const cuda::ImageThread my(q.inputs, V);
  if (!my.on) return;
  int d0, d1, h0, h1, w0, w1;
  q.axis[0].covering(my.at[0], d0, d1);
  q.axis[1].covering(my.at[1], h0, h1);
  q.axis[2].covering(my.at[2], w0, w1);
  C sum[V] = {};
  const T* from = grad_output + my.n * out.n + my.c * out.c;
  for (int d = d0; d < d1; ++d)
    for (int h = h0; h < h1; ++h)
      for (int w = w0; w < w1; ++w) {
        const C divisor = static_cast<C>(q.divisor_of(d, h, w));
        const cuda::Raw<T, V> raw = cuda::load<T, V>(from + d * out.s[0] + h * out.s[1] + w * out.s[2]);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += cuda::element(raw, v) / divisor;
      }
  cuda::store(grad_input + in(my.n, my.c, my.at), cuda::round<T, V>(sum));
}

template <class T, int V>
void forward(const Params& p, const void* input, void* output) {
  const Problem q = problem_of(p, V);
  cuda::OnDevice(p.device).launch(forward_kernel<T, V>, p.n * q.outputs.blocks(), kThreads,
                                  static_cast<const T*>(input), static_cast<T*>(output), q,
                                  cuda::steps_of(p.input), cuda::steps_of(p.output));
}

template <class T, int V>
void backward(const Params& p, const void* grad_output, void* grad_input) {
  const Problem q = problem_of(p, V);
  cuda::OnDevice(p.device).launch(backward_kernel<T, V>, p.n * q.inputs.blocks(), kThreads,
                                  static_cast<const T*>(grad_output), static_cast<T*>(grad_input), q,
                                  cuda::steps_of(p.input), cuda::steps_of(p.output));
}

}  // namespace

void forward_channels_cuda(const Params& p, const void* input, void* output) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    forward<T, cuda::kVector<T>>(p, input, output);
  });
}

void forward_direct_cuda(const Params& p, const void* input, void* output) {
  dispatch(p.dtype, [&](auto type) { forward<decltype(type), 1>(p, input, output); });
}

void backward_channels_cuda(const Params& p, const void* grad_output, void* grad_input) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    backward<T, cuda::kVector<T>>(p, grad_output, grad_input);
  });
}

void backward_direct_cuda(const Params& p, const void* grad_output, void* grad_input) {
  dispatch(p.dtype, [&](auto type) { backward<decltype(type), 1>(p, grad_output, grad_input); });
}

}  // namespace convnorm::avg_pool
