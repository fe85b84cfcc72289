// Depthwise convolution by 3x3 and 5x5 windows of stride 1 with vectors along rows that are read where they
// lie: NCHW, forward and by input. Only where loads may leave out lanes at no cost (AVX-512, float32).
//
//   for plane, for 16 columns of it:             planes in parallel
//     for each row y of the source, once:        the sums of K rows of outputs are in registers
//       for tap column j:  x = 16 pixels of the row, from column j on; those outside the image are zero
//         for tap row i:   sum[i] += w[i][j] * x
//       sum[K - 1] is complete and written, and sum[i] becomes sum[i + 1]
//
// A row is loaded K times for K * K products, and nothing is packed: what conv_depthwise_planes.h spends on
// that is more than the products of 3x3 taps take. At 7x7 it is less than seven loads of each row.
//
// Include after conv_depthwise_plan.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kRolledPixels = 4096;  // of a task, at least

#if CONVNORM_VECTOR_BYTES == 64

struct RolledPlane {
  const float *source, *weight, *residual;  // K * K weights in order; residual: as dst, or null
  float* dst;
  float bias;
  bool relu;
};

// The pixels of 16 columns from x on that are inside a row of `width`.
inline __mmask16 columns_inside(std::int64_t x, std::int64_t width) {
  const Inside in = inside(x, 1, width, 16);
  return static_cast<__mmask16>((1u << in.end) - (1u << in.begin));
}

inline void store_rolled(const RolledPlane& p, std::int64_t at, __mmask16 lanes, vec<float> x) {
  if (p.residual) x += vec<float>(_mm512_maskz_loadu_ps(lanes, p.residual + at));
  if (p.relu) x = relu(x);
  _mm512_mask_storeu_ps(p.dst + at, lanes, x);
}

// Outputs of the columns from x on.
template <int K, bool kEdges>
void roll_columns(const Dense& d, const RolledPlane& p, std::int64_t x) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const __mmask16 outputs = columns_inside(x, w.out);
  __mmask16 lanes[K];
  for (int j = 0; j < K; ++j) lanes[j] = columns_inside(x + w.offset + j, w.source);
  const vec<float> bias = splat<float>(p.bias);
  vec<float> sum[K];
  for (int i = 0; i < K; ++i) sum[i] = bias;
  // Row y is tap row i of output row y - h.offset - i.
  std::int64_t y = imax(0, h.offset), r = y - h.offset - (K - 1);
  const float* row = p.source + y * h.source_stride + x + w.offset;
  const auto finish_row = [&] {
    if (r >= 0) store_rolled(p, r * h.out_stride + x, outputs, sum[K - 1]);
    for (int i = K - 1; i > 0; --i) sum[i] = sum[i - 1];
    sum[0] = bias;
    ++r;
  };
  for (; y < h.source && r < h.out; ++y, row += h.source_stride) {
    const float* weight = p.weight;
    if (K > 3)
      asm("" : "+r"(weight));  // 9 weights stay in registers; 25 are read as operands of the products
    for (int j = 0; j < K; ++j) {
      const vec<float> pixels = kEdges ? _mm512_maskz_loadu_ps(lanes[j], row + j) : _mm512_loadu_ps(row + j);
      for (int i = 0; i < K; ++i) sum[i] += splat<float>(weight[i * K + j]) * pixels;
    }
    finish_row();
  }
  while (r < h.out) finish_row();  // rows of outputs that end below the image
}

template <int K>
void roll_plane(const Dense& d, const RolledPlane& p) {
  const Axis& w = d.axis[2];
  for (std::int64_t x = 0; x < w.out; x += 16) {
    const std::int64_t first = x + w.offset;
    first >= 0 && first + K - 1 + 16 <= w.source ? roll_columns<K, false>(d, p, x)
                                                 : roll_columns<K, true>(d, p, x);
  }
}

template <int K>
void roll_planes(const Dense& problem) {
  const Dense d = ascending(problem);
  const std::int64_t pixels = d.axis[1].out * d.axis[2].out;
  parallel_for(
      d.n * d.groups, ceil_div(kRolledPixels, imax(1, pixels)), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t n = i / d.groups, c = i % d.groups;
          float weight[K * K];
          for (int t = 0; t < K * K; ++t)
            weight[t] =
                static_cast<const float*>(d.weight)[c * d.weight_group + weight_offset(d, 0, t / K, t % K)];
          float* dst = static_cast<float*>(d.dst) + n * d.dst_n + c * d.dst_c;
          roll_plane<K>(
              d, {static_cast<const float*>(d.src) + n * d.src_n + c * d.src_c, weight, residual_at(d, dst),
                  dst, d.bias ? static_cast<const float*>(d.bias)[c] : 0, d.relu});
        }
      });
}

inline void run_rolling(const Dense& d) { d.axis[1].taps == 3 ? roll_planes<3>(d) : roll_planes<5>(d); }

// Whether a problem is one that run_rolling takes. Output rows above all of the image have no row to end
// them.
inline bool rolls(const Dense& problem) {
  const Dense d = ascending(problem);
  const Axis &depth = d.axis[0], &h = d.axis[1], &w = d.axis[2];
  const auto plain = [](const Axis& a) { return a.step == 1 && a.offset_step == 1; };
  return d.dtype == DType::f32 && depth.source == 1 && depth.out == 1 && depth.taps == 1 &&
         depth.offset == 0 && plain(h) && plain(w) && h.taps == w.taps && (h.taps == 3 || h.taps == 5) &&
         -h.offset < h.taps && w.source_stride == 1 && w.out_stride == 1;
}

#else

inline bool rolls(const Dense&) { return false; }
inline void run_rolling(const Dense&) {}

#endif

}  // namespace
}  // namespace convnorm::conv
