// Forward: a thread has one output of V neighbouring channels and tries the window's taps in order. Windows
// that overlap find their values in L1. With V = 1 any strides.
#include "cuda/launch.h"
#include "ops/max_pool/cuda/max_pool_codes.cuh"

namespace convnorm::max_pool {
namespace {

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 4)
    forward_kernel(const T* input, T* output, void* argmax, __grid_constant__ const Problem q) {
  using C = compute_t<T>;
  const cuda::ImageThread my(q.outputs, V);
  if (!my.on) return;
  const Axis &d = q.axis[0], &h = q.axis[1], &w = q.axis[2];
  int d0, d1, h0, h1, w0, w1;
  d.taps(my.at[0], d0, d1);
  h.taps(my.at[1], h0, h1);
  w.taps(my.at[2], w0, w1);
  C best[V];
  int code[V];
  const int none = q.code(d0, h0, w0, d.at(my.at[0], d0), h.at(my.at[1], h0), w.at(my.at[2], w0));
#pragma unroll
  for (int v = 0; v < V; ++v) best[v] = -static_cast<C>(INFINITY), code[v] = none;

  const T* from = input + my.n * q.input_n + my.c * q.input_c;
  for (int td = d0; td < d1; ++td)
    for (int th = h0; th < h1; ++th) {
      const int id = d.at(my.at[0], td), ih = h.at(my.at[1], th);
      const T* row = from + id * q.input_s[0] + ih * q.input_s[1];
      for (int tw = w0; tw < w1; ++tw) {
        const int iw = w.at(my.at[2], tw), here = q.code(td, th, tw, id, ih, iw);
        const cuda::Raw<T, V> raw = cuda::load<T, V>(row + iw * q.input_s[2]);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const C x = cuda::element(raw, v);
          if (x > best[v] || x != x) best[v] = x, code[v] = here;
        }
      }
    }
  cuda::store(output + offset(my.n * q.output_n, my.c * q.output_c, q.output_s, my.at),
              cuda::round<T, V>(best));
  if (q.record != Argmax::none)
    store_codes(q.record, argmax, offset(my.n * q.argmax_n, my.c * q.argmax_c, q.argmax_s, my.at), code);
}

// values[o] = x at what o recorded, zero where that is outside the image.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    gather_kernel(const T* x, const void* argmax, T* values, __grid_constant__ const Problem q,
                  cuda::Divider second, cuda::Divider third) {
  const cuda::ImageThread my(q.outputs, 1);
  if (!my.on) return;
  int code[1];
  load_codes(q.record, argmax, offset(my.n * q.argmax_n, my.c * q.argmax_c, q.argmax_s, my.at), code);
  T* to = values + offset(my.n * q.output_n, my.c * q.output_c, q.output_s, my.at);
  auto rest = static_cast<std::uint32_t>(code[0] < 0 ? 0 : code[0]);
  std::uint32_t row = third.split(rest);
  const std::uint32_t plane = second.split(row);
  int i[kSpatial] = {static_cast<int>(plane), static_cast<int>(row), static_cast<int>(rest)};
  bool inside = code[0] >= 0;
  for (int a = 0; a < kSpatial; ++a) {
    if (q.record != Argmax::index64) i[a] = q.axis[a].at(my.at[a], i[a]);
    inside = inside && i[a] >= 0 && i[a] < q.axis[a].in;
  }
  cuda::Raw<T, 1> value;
  if (inside) value = cuda::load<T, 1>(x + offset(my.n * q.input_n, my.c * q.input_c, q.input_s, i));
  cuda::store(to, value);
}

template <class T, int V>
void forward(const Params& p, const void* input, void* output, void* argmax) {
  const Problem q = problem_of(p, V);
  cuda::OnDevice(p.device).launch(forward_kernel<T, V>, p.n * q.outputs.blocks(), kThreads,
                                  static_cast<const T*>(input), static_cast<T*>(output), argmax, q);
}

}  // namespace

void forward_channels_cuda(const Params& p, const void* input, void* output, void* argmax) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    forward<T, cuda::kVector<T>>(p, input, output, argmax);
  });
}

void forward_direct_cuda(const Params& p, const void* input, void* output, void* argmax) {
  dispatch(p.dtype, [&](auto type) { forward<decltype(type), 1>(p, input, output, argmax); });
}

void gather_cuda(const Params& p, const void* x, const void* argmax, void* values) {
  const Problem q = problem_of(p, 1);
  const Dims& size = p.record == Argmax::index64 ? p.in : p.window.kernel;
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    cuda::OnDevice(p.device).launch(gather_kernel<T>, p.n * q.outputs.blocks(), kThreads,
                                    static_cast<const T*>(x), argmax, static_cast<T*>(values), q,
                                    cuda::Divider(size[1]), cuda::Divider(size[2]));
  });
}

}  // namespace convnorm::max_pool
