// Group norm by batch norm's passes: every channel of every image has sums of its own; a block per group
// merges those of its channels, and gives each channel what the next pass needs. Sums over images come last.
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/batch_norm/cuda/batch_norm_passes.h"
#include "ops/group_norm/cuda/group_norm_plan.h"

namespace convnorm::group_norm {
namespace {

using cuda::kThreads;
using cuda::Piece;
using cuda::Plan;

// Sizes, and arrays of one double per image and channel behind the pieces.
struct Groups {
  std::int64_t batch, channels, groups, depth, all;  // all: batch * channels
  double values;                                     // of a group
  double* arrays;

  CONVNORM_HD double* array(int i) const { return arrays + i * all; }
  CONVNORM_HD ChannelRef ref(int i) const { return {array(i), DType::f64, 1}; }
};

enum Array : int { kMean, kVar, kWeight, kBias, kLevel = kBias, kSlope, kSum, kDot };

Groups groups_of(const Shape& p, const Plan& plan, void* workspace) {
  return {p.batch,
          p.channels,
          p.groups,
          p.depth(),
          p.batch * p.channels,
          static_cast<double>(p.group_values()),
          reinterpret_cast<double*>(static_cast<char*>(workspace) + plan.bytes())};
}

// The block's group: its number among all, its first channel in the image, and that among all images'
// channels.
struct Mine {
  std::int64_t group, channel, first;
  __device__ explicit Mine(const Groups& s) {
    group = blockIdx.x;
    channel = group % s.groups * s.depth;
    first = group / s.groups * s.channels + channel;
  }
};

__global__ void __launch_bounds__(kThreads)
    merge_statistics_kernel(const Piece* pieces, __grid_constant__ const Plan plan,
                            __grid_constant__ const Groups s, ChannelRef weight, ChannelRef bias,
                            double* means, double* vars) {
  __shared__ double shared1[kThreads], shared2[kThreads];
  const Mine my(s);
  const auto thread = static_cast<int>(threadIdx.x);
  const double origin = pieces[my.first].mean;
  double s1 = 0, s2 = 0;
  for (std::int64_t i = thread; i < s.depth * plan.pieces(); i += kThreads) {
    const std::int64_t piece = i / s.depth, c = i - piece * s.depth;
    const Piece of = pieces[piece * s.all + my.first + c];
    const double n = static_cast<double>(plan.count(piece)), d = of.mean - origin;
    s1 += n * d;
    s2 += of.m2 + n * d * d;
  }
  shared1[thread] = s1;
  shared2[thread] = s2;
  cuda::sum_rows(shared1, shared2, kThreads, 1, thread, kThreads);
  const double mean = origin + shared1[0] / s.values, m2 = shared2[0] - shared1[0] * shared1[0] / s.values;
  const double var = m2 < 0 ? 0 : m2 / s.values;
  if (thread == 0) means[my.group] = mean, vars[my.group] = var;
  for (std::int64_t c = thread; c < s.depth; c += kThreads) {
    s.array(kMean)[my.first + c] = mean;
    s.array(kVar)[my.first + c] = var;
    s.array(kWeight)[my.first + c] = cuda::read(weight, my.channel + c, 1);
    s.array(kBias)[my.first + c] = cuda::read(bias, my.channel + c, 0);
  }
}

// Given statistics and weights, to every channel of every image.
__global__ void __launch_bounds__(kThreads)
    expand_kernel(const double* means, const double* vars, ChannelRef weight,
                  __grid_constant__ const Groups s) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= s.all) return;
  const std::int64_t n = i / s.channels, c = i - n * s.channels, group = n * s.groups + c / s.depth;
  s.array(kMean)[i] = means[group];
  s.array(kVar)[i] = vars[group];
  s.array(kWeight)[i] = cuda::read(weight, c, 1);
}

// sum g and sum g xhat of each channel, and of them what the last pass takes from x' (Terms of batch norm's
// passes).
template <class C>
__global__ void __launch_bounds__(kThreads)
    merge_sums_kernel(const Piece* pieces, __grid_constant__ const Plan plan,
                      __grid_constant__ const Groups s, double eps) {
  __shared__ double shared1[kThreads], shared2[kThreads];
  const Mine my(s);
  const auto thread = static_cast<int>(threadIdx.x);
  const double mean = s.array(kMean)[my.first], r = 1 / sqrt(s.array(kVar)[my.first] + eps);
  const double low = mean - static_cast<C>(mean);
  double level = 0, along = 0;
  for (std::int64_t c = my.first + thread; c < my.first + s.depth; c += kThreads) {
    double sum = 0, dot = 0;
    for (std::int64_t piece = 0; piece < plan.pieces(); ++piece) {
      const Piece of = pieces[piece * s.all + c];
      sum += of.mean;
      dot += of.m2;
    }
    dot = r * (dot - low * sum);
    s.array(kSum)[c] = sum;
    s.array(kDot)[c] = dot;
    level += s.array(kWeight)[c] * sum;
    along += s.array(kWeight)[c] * dot;
  }
  shared1[thread] = level;
  shared2[thread] = along;
  cuda::sum_rows(shared1, shared2, kThreads, 1, thread, kThreads);
  for (std::int64_t c = my.first + thread; c < my.first + s.depth; c += kThreads) {
    s.array(kLevel)[c] = r * shared1[0] / s.values;
    s.array(kSlope)[c] = r * shared2[0] / s.values;
  }
}

__global__ void __launch_bounds__(kThreads)
    sum_images_kernel(__grid_constant__ const Groups s, ChannelRef grad_weight, ChannelRef grad_bias) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= s.channels) return;
  double sum = 0, dot = 0;
  for (std::int64_t i = c; i < s.all; i += s.channels) sum += s.array(kSum)[i], dot += s.array(kDot)[i];
  cuda::write(grad_bias, c, sum);
  cuda::write(grad_weight, c, dot);
}

// What the passes take of group norm's Params.
template <class To>
To pass_params(const Shape& p, double eps, const void* x, const Groups& s) {
  To to;
  to.dtype = p.dtype;
  to.rows = p.rows;
  to.eps = eps;
  to.x.data = const_cast<void*>(x);
  to.at.mean = s.ref(kMean);
  to.at.var = s.ref(kVar);
  to.at.weight = s.ref(kWeight);
  return to;
}

}  // namespace

void forward_cuda(const Forward& p) {
  const cuda::OnDevice device(p.device);
  const Plan plan = plan_of(p);
  const Groups s = groups_of(p, plan, p.workspace);
  auto* pieces = static_cast<Piece*>(p.workspace);
  auto pass = pass_params<batch_norm::Forward>(p, p.eps, p.x, s);
  pass.at.bias = s.ref(kBias);
  pass.out.data = p.out;
  batch_norm::statistics_pass(device, pass, plan, pieces);
  device.launch(merge_statistics_kernel, p.batch * p.groups, kThreads, pieces, plan, s, p.weight_at,
                p.bias_at, p.mean, p.var);
  batch_norm::apply_pass(device, pass, plan);
}

void backward_cuda(const Backward& p) {
  const cuda::OnDevice device(p.device);
  const Plan plan = plan_of(p);
  const Groups s = groups_of(p, plan, p.workspace);
  auto* pieces = static_cast<Piece*>(p.workspace);
  auto pass = pass_params<batch_norm::Backward>(p, p.eps, p.x, s);
  pass.grad_output.data = const_cast<void*>(p.grad_output);
  pass.grad_input.data = p.grad_input;
  device.launch(expand_kernel, cuda::up_to(s.all, kThreads), kThreads, p.mean, p.var, p.weight_at, s);
  batch_norm::sums_pass(device, pass, plan, pieces);
  device.launch(p.dtype == DType::f64 ? merge_sums_kernel<double> : merge_sums_kernel<float>,
                p.batch * p.groups, kThreads, pieces, plan, s, p.eps);
  if (p.grad_weight_at.data)
    device.launch(sum_images_kernel, cuda::up_to(p.channels, kThreads), kThreads, s, p.grad_weight_at,
                  p.grad_bias_at);
  if (p.grad_input) batch_norm::gradients_pass(device, pass, plan, {s.ref(kLevel), s.ref(kSlope)});
}

}  // namespace convnorm::group_norm
