// Few channels per group (depthwise, and gradients of an image's three channels): a thread has one element of
// the result, by weight a block has. No tile would be full.
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "ops/conv/cuda/conv_tile.cuh"

namespace convnorm::conv {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, 4) direct_kernel(__grid_constant__ const Problem q) {
  using C = compute_t<T>;
  const Dense& d = q.d;
  const std::int64_t channels = d.groups * d.out_c;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x, channel, row;
  if (i >= q.rows * channels) return;
  if (d.dst_c == 1) {
    row = i / channels;
    channel = i - row * channels;
  } else {  // pixels of a plane, then channels, then images
    const std::int64_t plane = i / q.pixels, n = plane / channels;
    channel = plane - n * channels;
    row = n * q.pixels + (i - plane * q.pixels);
  }
  const Pixel pixel = q.pixel(row);
  const std::int64_t group = channel / d.out_c, o = channel - group * d.out_c;
  const T* src = static_cast<const T*>(d.src) + group * d.red_c * d.src_c;
  C all = d.bias ? cuda::load1(static_cast<const T*>(d.bias) + channel) : C{};
  for (int k = 0; k < q.reduction; k += static_cast<int>(d.red_c)) {
    Tap tap = q.tap(k);
    std::int64_t offset;
    if (!q.source(pixel, tap, offset)) continue;
    const T* weight = static_cast<const T*>(d.weight) + q.weight(group, o, tap);
    C sum = 0;
    for (std::int64_t c = 0; c < d.red_c; ++c)
      sum = fma(cuda::load1(src + offset + c * d.src_c), cuda::load1(weight + c * d.weight_red), sum);
    all += sum;
  }
  write_sum<T>(d, pixel.dst + channel * d.dst_c, all);
}

// One weight: the sum over all pixels, in chains of 16 in C and then in double.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) direct_weight_kernel(__grid_constant__ const Problem q) {
  using C = compute_t<T>;
  const Dense& d = q.d;
  __shared__ double sums[kThreads], unused[kThreads];
  const std::int64_t column = blockIdx.x % q.reduction, channel = blockIdx.x / q.reduction;
  const std::int64_t group = channel / d.out_c, o = channel - group * d.out_c;
  const Tap tap = q.tap(static_cast<int>(column));
  const T *src = static_cast<const T*>(d.src) + group * d.red_c * d.src_c,
          *dst = static_cast<const T*>(d.dst) + channel * d.dst_c;
  double all = 0;
  for (std::int64_t row = threadIdx.x; row < q.rows;) {
    C sum = 0;
    for (int i = 0; i < 16 && row < q.rows; ++i, row += kThreads) {
      const Pixel pixel = q.pixel(row);
      std::int64_t offset;
      if (q.source(pixel, tap, offset))
        sum = fma(cuda::load1(src + offset), cuda::load1(dst + pixel.dst), sum);
    }
    all += sum;
  }
  sums[threadIdx.x] = all;
  unused[threadIdx.x] = 0;
  cuda::sum_rows(sums, unused, kThreads, 1, static_cast<int>(threadIdx.x), kThreads);
  if (threadIdx.x == 0)
    cuda::store1(static_cast<T*>(d.weight) + q.weight(group, o, tap), static_cast<C>(sums[0]));
}

// The gradient of one channel's bias.
template <class T>
__global__ void __launch_bounds__(kThreads) bias_kernel(__grid_constant__ const Problem q) {
  const Dense& d = q.d;
  __shared__ double sums[kThreads], unused[kThreads];
  const T* dst = static_cast<const T*>(d.dst) + blockIdx.x * d.dst_c;
  double all = 0;
  for (std::int64_t row = threadIdx.x; row < q.rows; row += kThreads)
    all += cuda::load1(dst + q.pixel(row).dst);
  sums[threadIdx.x] = all;
  unused[threadIdx.x] = 0;
  cuda::sum_rows(sums, unused, kThreads, 1, static_cast<int>(threadIdx.x), kThreads);
  if (threadIdx.x == 0)
    cuda::store1(static_cast<T*>(d.bias) + blockIdx.x, static_cast<compute_t<T>>(sums[0]));
}

void run(const cuda::OnDevice& device, const Dense& dense) {
  const Problem q = problem_of(dense);
  dispatch(dense.dtype, [&](auto type) {
    device.launch(direct_kernel<decltype(type)>, up_to(q.rows * dense.groups * dense.out_c, kThreads),
                  kThreads, q);
  });
}

}  // namespace

void direct_cuda(const Params& p) {
  const cuda::OnDevice device(p.device);
  if (p.pass == Pass::by_input) {
    for (const Dense& d : by_input_problems(p)) run(device, d);
  } else if (p.pass == Pass::forward) {
    run(device, forward_problem(p));
  } else {
    const Problem q = problem_of(forward_problem(p));
    dispatch(p.dtype, [&](auto type) {
      device.launch(direct_weight_kernel<decltype(type)>, p.output.c * q.reduction, kThreads, q);
    });
    bias_gradient_cuda(p);
  }
}

void bias_gradient_cuda(const Params& p) {
  if (!p.bias) return;
  const Problem q = problem_of(forward_problem(p));
  dispatch(p.dtype, [&](auto type) {
    cuda::OnDevice(p.device).launch(bias_kernel<decltype(type)>, p.output.c, kThreads, q);
  });
}

}  // namespace convnorm::conv
