// Convolutions as dense sub-problems (see Dense in conv.h). Geometry only: no loop over data, no torch.
#include <numeric>

#include "ops/conv/conv.h"

namespace convnorm::conv {
namespace {

std::int64_t floor_mod(std::int64_t a, std::int64_t b) { return ((a % b) + b) % b; }

std::int64_t offset_elements(DType t, std::int64_t elements) { return elements * bytes(t); }

// A plane whose rows follow each other without a gap, in source and destination, and that is read one to one,
// is a single long row: 1x1 convolutions lose their row ends.
void merge_rows(Dense& d) {
  Axis& row = d.axis[kSpatial - 1];
  const auto one_to_one = [](const Axis& a) {
    return a.taps == 1 && a.step == 1 && a.offset == 0 && a.out == a.source;
  };
  for (int outer = kSpatial - 2; outer >= 0; --outer) {
    Axis& a = d.axis[outer];
    if (!one_to_one(a) || !one_to_one(row)) return;
    if (a.out == 1) continue;
    if (a.out_stride != row.out_stride * row.out || a.source_stride != row.source_stride * row.source) return;
    row.out *= a.out;
    row.source *= a.source;
    a.out = a.source = 1;
  }
}

// What both passes set: they read one image and write the other, at distances the weight has for its
// channels.
Dense dense(const Params& p, const View5& from, const View5& to, std::int64_t weight_out,
            std::int64_t weight_red) {
  Dense d{};
  d.dtype = p.dtype;
  d.n = p.input.n;
  d.groups = p.groups;
  d.red_c = from.c / p.groups;
  d.out_c = to.c / p.groups;
  d.src = from.data;
  d.src_n = from.stride_n;
  d.src_c = from.stride_c;
  d.dst = to.data;
  d.dst_n = to.stride_n;
  d.dst_c = to.stride_c;
  d.weight = p.weight.data;
  d.weight_out = weight_out;
  d.weight_red = weight_red;
  d.weight_group = p.output.c / p.groups * p.weight.stride_k;
  return d;
}

}  // namespace

Dense forward_problem(const Params& p) {
  Dense d = dense(p, p.input, p.output, p.weight.stride_k, p.weight.stride_c);
  d.bias = p.bias;
  d.residual = p.residual;
  d.relu = p.relu;
  d.packed = p.packed;
  for (int s = 0; s < kSpatial; ++s)
    d.axis[s] = {p.output.size[s],  p.output.stride[s], p.input.size[s],
                 p.input.stride[s], p.window.stride[s], p.window.kernel[s],
                 -p.window.pad[s],  p.window.dil[s],    p.weight.stride[s]};
  merge_rows(d);
  return d;
}

// Input position i = a + stride*j (residue a) receives tap r where (a + pad - r*dil) is divisible by the
// stride. With g = gcd(stride, dil) those r are r0, r0 + stride/g, ...; the output it comes from is j + (a +
// pad - r*dil)/stride. So each residue is a dense, stride-1 problem over grad_output. A residue without taps
// has taps == 0: its gradient is zero.
std::vector<Dense> by_input_problems(const Params& p) {
  std::array<std::vector<Axis>, kSpatial> axes;
  std::array<std::vector<std::int64_t>, kSpatial> first;         // residue a
  std::array<std::vector<std::int64_t>, kSpatial> first_weight;  // r0
  for (int s = 0; s < kSpatial; ++s) {
    const std::int64_t stride = p.window.stride[s], dil = p.window.dil[s], pad = p.window.pad[s];
    const std::int64_t tap_step = stride / std::gcd(stride, dil);
    for (std::int64_t a = 0; a < stride && a < p.input.size[s]; ++a) {
      std::int64_t r0 = 0;
      while (r0 < tap_step && floor_mod(a + pad - r0 * dil, stride) != 0) ++r0;
      const std::int64_t kernel = r0 < tap_step ? p.window.kernel[s] : 0;
      Axis axis{};
      axis.out = (p.input.size[s] - a + stride - 1) / stride;
      axis.out_stride = p.input.stride[s] * stride;
      axis.source = p.output.size[s];
      axis.source_stride = p.output.stride[s];
      axis.step = 1;
      axis.taps = kernel > r0 ? (kernel - r0 + tap_step - 1) / tap_step : 0;
      axis.offset = (a + pad - r0 * dil) / stride;  // exact where taps > 0
      axis.offset_step = -(tap_step * dil / stride);
      axis.weight_step = p.weight.stride[s] * tap_step;
      axes[s].push_back(axis);
      first[s].push_back(a);
      first_weight[s].push_back(r0);
    }
  }
  std::vector<Dense> problems;
  for (std::size_t i = 0; i < axes[0].size(); ++i)
    for (std::size_t j = 0; j < axes[1].size(); ++j)
      for (std::size_t k = 0; k < axes[2].size(); ++k) {
        Dense d = dense(p, p.output, p.input, p.weight.stride_c, p.weight.stride_k);
        const std::size_t at[kSpatial] = {i, j, k};
        std::int64_t dst = 0, weight = 0;
        for (int s = 0; s < kSpatial; ++s) {
          d.axis[s] = axes[s][at[s]];
          dst += first[s][at[s]] * p.input.stride[s];
          weight += first_weight[s][at[s]] * p.weight.stride[s];
        }
        const bool empty = d.axis[0].taps == 0 || d.axis[1].taps == 0 || d.axis[2].taps == 0;
        if (empty) d.axis[0].taps = d.axis[1].taps = d.axis[2].taps = 0;
        d.dst = static_cast<char*>(p.input.data) + offset_elements(p.dtype, dst);
        d.weight = static_cast<char*>(p.weight.data) + offset_elements(p.dtype, empty ? 0 : weight);
        merge_rows(d);
        problems.push_back(d);
      }
  return problems;
}

Params folded_problem(const Params& p) {
  constexpr std::int64_t kLine = 16;  // floats
  const auto up = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  Params q = p;
  q.packed = nullptr;
  q.window = Window{};
  q.input.c = p.input.c * p.window.stride[1] * p.window.stride[2];
  for (int s = 1; s < kSpatial; ++s) {
    q.window.kernel[s] = up(p.window.kernel[s], p.window.stride[s]);
    q.input.size[s] = p.output.size[s] + q.window.kernel[s] - 1;
  }
  q.input.stride_c = 1;
  q.input.stride[2] = up(q.input.c, kLine) * kLine;
  q.input.stride[1] = q.input.stride[2] * q.input.size[2];
  q.input.stride[0] = q.input.stride_n = q.input.stride[1] * q.input.size[1];
  q.weight.stride = {0, q.window.kernel[2], 1};
  q.weight.stride_c = q.window.kernel[1] * q.window.kernel[2];
  q.weight.stride_k = q.weight.stride_c * q.input.c;
  q.input.data = q.weight.data = nullptr;
  return q;
}

}  // namespace convnorm::conv
