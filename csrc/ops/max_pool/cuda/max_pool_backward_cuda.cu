// Backward: a thread has one position of V neighbouring channels of the input, reads what the windows that
// cover it recorded, and writes its gradient once. A gradient is loaded only where one of its channels
// belongs here.
#include "cuda/launch.h"
#include "ops/max_pool/cuda/max_pool_codes.cuh"

namespace convnorm::max_pool {
namespace {

template <class T, int V>
__device__ inline void add_window(const T* grad_output, const void* argmax, const Problem& q,
                                  std::int64_t grad_at, std::int64_t code_at, int here,
                                  compute_t<T> (&sum)[V]) {
  int code[V];
  load_codes(q.record, argmax, code_at, code);
  bool any = false;
#pragma unroll
  for (int v = 0; v < V; ++v) any = any || code[v] == here;
  if (!any) return;
  const cuda::Raw<T, V> raw = cuda::load<T, V>(grad_output + grad_at);
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (code[v] == here) sum[v] += cuda::element(raw, v);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(const T* grad_output, const void* argmax, T* grad_input,
                    __grid_constant__ const Problem q) {
  const cuda::ImageThread my(q.inputs, V);
  if (!my.on) return;
  const Axis &d = q.axis[0], &h = q.axis[1], &w = q.axis[2];
  int d0, d1, h0, h1, w0, w1;
  d.covering(my.at[0], d0, d1);
  h.covering(my.at[1], h0, h1);
  w.covering(my.at[2], w0, w1);
  compute_t<T> sum[V] = {};
  const std::int64_t grad = my.n * q.output_n + my.c * q.output_c,
                     codes = my.n * q.argmax_n + my.c * q.argmax_c;
  for (int od = d0; od < d1; ++od)
    for (int oh = h0; oh < h1; ++oh)
      for (int ow = w0; ow < w1; ++ow) {
        const int td = d.tap(my.at[0], od), th = h.tap(my.at[1], oh), tw = w.tap(my.at[2], ow);
        if (td < 0 || th < 0 || tw < 0) continue;
        const int here = q.code(td, th, tw, my.at[0], my.at[1], my.at[2]), o[kSpatial] = {od, oh, ow};
        add_window<T, V>(grad_output, argmax, q, offset(grad, 0, q.output_s, o),
                         offset(codes, 0, q.argmax_s, o), here, sum);
      }
  cuda::store(grad_input + offset(my.n * q.input_n, my.c * q.input_c, q.input_s, my.at),
              cuda::round<T, V>(sum));
}

template <class T, int V>
void backward(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  const Problem q = problem_of(p, V);
  cuda::OnDevice(p.device).launch(backward_kernel<T, V>, p.n * q.inputs.blocks(), kThreads,
                                  static_cast<const T*>(grad_output), argmax, static_cast<T*>(grad_input), q);
}

}  // namespace

void backward_channels_cuda(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    backward<T, cuda::kVector<T>>(p, grad_output, argmax, grad_input);
  });
}

void backward_direct_cuda(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto type) { backward<decltype(type), 1>(p, grad_output, argmax, grad_input); });
}

}  // namespace convnorm::max_pool
