// Depthwise convolution by 3x3, 5x5 and (narrow planes) 7x7 windows of stride 1 with vectors along rows that
// are read where they lie: NCHW, forward and by input. Only where loads may leave out lanes at no cost
// (AVX-512, float32).
//
//   for plane, for 16 columns of it:             planes in parallel
//     for each row y of the source, once:        the sums of K rows of outputs are in registers
//       for tap column j:  x = 16 pixels of the row, from column j on; those outside the image are zero
//         for tap row i:   sum[i] += w[i][j] * x
//       sum[K - 1] is complete and written, and sum[i] becomes sum[i + 1]
//
// A row is loaded K times for K * K products, and nothing is packed: what conv_depthwise_planes.h spends on
// that is more than the products of 3x3 taps take. At 7x7 it is about as much as seven loads of each
// row: wider planes than 8 columns go there.
//
// Planes of at most 8 columns go in pairs, one in each half of a vector: each half of a row is one masked
// load, and a permutation moves it by a column. Weights are then vectors of two, made once for all images.
//
// Include after conv_depthwise_plan.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kRolledPixels = 4096;  // of a task, at least
inline constexpr std::int64_t kPairWidth = 8;        // columns of a plane that shares a vector

#if CONVNORM_VECTOR_BYTES == 64

// The pixels of 16 columns from x on that are inside a row of `width`.
inline __mmask16 columns_inside(std::int64_t x, std::int64_t width) {
  const Inside in = inside(x, 1, width, 16);
  return static_cast<__mmask16>((1u << in.end) - (1u << in.begin));
}

// Rows of 16 columns of a plane, from column x on: `pixels(j)` are those that tap column j reads.
template <int K, bool kEdges>
struct WideRows {
  const float* row;
  __mmask16 lanes[K];

  WideRows(const Axis& w, const float* plane, std::int64_t x, __mmask16 outputs) : row(plane + x + w.offset) {
    for (int j = 0; j < K; ++j) lanes[j] = columns_inside(x + w.offset + j, w.source) & outputs;
  }
  void take(std::int64_t offset) { at_ = row + offset; }
  vec<float> pixels(int j) const {
    return kEdges ? _mm512_maskz_loadu_ps(lanes[j], at_ + j) : _mm512_loadu_ps(at_ + j);
  }

 private:
  const float* at_ = nullptr;
};

// Two planes whose rows are the halves of a vector; the second may be missing.
struct Pair {
  std::int64_t second;  // from the first plane to the second
  bool both;

  static constexpr int kHalf = kPairWidth;
  __mmask16 low(std::int64_t width) const { return static_cast<__mmask16>((1u << width) - 1); }
  __mmask16 high(std::int64_t width) const {
    return both ? static_cast<__mmask16>(low(width) << kHalf) : __mmask16(0);
  }
  vec<float> load(const float* row, std::int64_t width) const {
    return _mm512_mask_loadu_ps(_mm512_maskz_loadu_ps(low(width), row), high(width), row + second - kHalf);
  }
  void store(float* row, std::int64_t width, vec<float> x) const {
    _mm512_mask_storeu_ps(row, low(width), x);
    _mm512_mask_storeu_ps(row + second - kHalf, high(width), x);
  }
};

// Their rows.
template <int K>
struct PairedRows {
  Pair pair;
  const float* plane;
  std::int64_t width;
  __mmask16 lanes[K];
  __m512i from[K];

  PairedRows(const Axis& w, Pair pair, const float* plane) : pair(pair), plane(plane), width(w.source) {
    for (int j = 0; j < K; ++j) {
      const unsigned half = columns_inside(w.offset + j, w.source) & pair.low(w.out);
      lanes[j] = static_cast<__mmask16>(half | half << Pair::kHalf);
      const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      from[j] = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(w.offset) + j));  // modulo 16
    }
  }
  void take(std::int64_t offset) { row_ = pair.load(plane + offset, width); }
  vec<float> pixels(int j) const { return _mm512_maskz_permutexvar_ps(lanes[j], from[j], row_); }

 private:
  vec<float> row_{};
};

// All rows of outputs: weight(i, j) is a vector, store(r, sum) takes row r.
template <int K, class Rows, class Weight, class Store>
[[gnu::always_inline]] inline void roll_rows(const Axis& h, Rows rows, vec<float> bias, const Weight& weight,
                                             const Store& store) {
  vec<float> sum[K];
  for (int i = 0; i < K; ++i) sum[i] = bias;
  // Row y is tap row i of output row y - h.offset - i.
  std::int64_t y = imax(0, h.offset), r = y - h.offset - (K - 1);
  const auto finish_row = [&] {
    if (r >= 0) store(r, sum[K - 1]);
    for (int i = K - 1; i > 0; --i) sum[i] = sum[i - 1];
    sum[0] = bias;
    ++r;
  };
  for (; y < h.source && r < h.out; ++y) {
    rows.take(y * h.source_stride);
    const auto of_row = weight();
    for (int j = 0; j < K; ++j) {
      const vec<float> pixels = rows.pixels(j);
      for (int i = 0; i < K; ++i) sum[i] += of_row(i * K + j) * pixels;
    }
    finish_row();
  }
  while (r < h.out) finish_row();  // rows of outputs that end below the image
}

// A pointer to weights, made anew for each row: 9 of them stay in registers, more are read as operands of
// the products.
template <int K>
inline const float* operands(const float* weight) {
  if (K > 3) asm("" : "+r"(weight));
  return weight;
}

inline vec<float> finish_sum(vec<float> x, const vec<float>* residual, bool clip) {
  if (residual) x += *residual;
  return clip ? relu(x) : x;
}

struct RolledPlane {
  const float *source, *weight, *residual;  // K * K weights in order; residual: as dst, or null
  float* dst;
  float bias;
};

// Outputs of the columns from x on.
template <int K, bool kEdges>
void roll_columns(const Dense& d, const RolledPlane& p, std::int64_t x) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const __mmask16 outputs = columns_inside(x, w.out);
  roll_rows<K>(
      h, WideRows<K, kEdges>(w, p.source, x, 0xffff), splat<float>(p.bias),
      [&] { return [weight = operands<K>(p.weight)](int tap) { return splat<float>(weight[tap]); }; },
      [&](std::int64_t r, vec<float> sum) {
        const std::int64_t at = r * h.out_stride + x;
        vec<float> residual{};
        if (p.residual) residual = _mm512_maskz_loadu_ps(outputs, p.residual + at);
        _mm512_mask_storeu_ps(p.dst + at, outputs, finish_sum(sum, p.residual ? &residual : nullptr, d.relu));
      });
}

inline const float* weights_of(const Dense& d, std::int64_t channel) {
  return static_cast<const float*>(d.weight) + channel * d.weight_group;
}
inline float bias_of(const Dense& d, std::int64_t channel) {
  return d.bias ? static_cast<const float*>(d.bias)[channel] : 0;
}

template <int K>
void roll_plane(const Dense& d, std::int64_t n, std::int64_t c) {
  float weight[K * K];
  for (int t = 0; t < K * K; ++t) weight[t] = weights_of(d, c)[weight_offset(d, 0, t / K, t % K)];
  float* dst = static_cast<float*>(d.dst) + n * d.dst_n + c * d.dst_c;
  const RolledPlane p = {static_cast<const float*>(d.src) + n * d.src_n + c * d.src_c, weight,
                         residual_at(d, dst), dst, bias_of(d, c)};
  const Axis& w = d.axis[2];
  for (std::int64_t x = 0; x < w.out; x += 16) {
    const std::int64_t first = x + w.offset;
    first >= 0 && first + K - 1 + 16 <= w.source ? roll_columns<K, false>(d, p, x)
                                                 : roll_columns<K, true>(d, p, x);
  }
}

// Planes c and c + 1 of images [begin, end).
template <int K>
void roll_pair(const Dense& d, std::int64_t c, std::int64_t begin, std::int64_t end) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const bool both = c + 1 < d.groups;
  const Pair source{d.src_c, both}, dst{d.dst_c, both};
  const auto halves = [](float a, float b) {
    return vec<float>(_mm512_mask_blend_ps(0xff00, _mm512_set1_ps(a), _mm512_set1_ps(b)));
  };
  vec<float> weight[K * K];
  for (int t = 0; t < K * K; ++t) {
    const float* from = weights_of(d, c) + weight_offset(d, 0, t / K, t % K);
    weight[t] = halves(from[0], from[both ? d.weight_group : 0]);
  }
  const vec<float> bias = halves(bias_of(d, c), bias_of(d, both ? c + 1 : c));
  for (std::int64_t n = begin; n < end; ++n) {
    float* to = static_cast<float*>(d.dst) + n * d.dst_n + c * d.dst_c;
    const float* residual = residual_at(d, to);
    roll_rows<K>(
        h, PairedRows<K>(w, source, static_cast<const float*>(d.src) + n * d.src_n + c * d.src_c), bias,
        [&] {
          const float* at = operands<K>(reinterpret_cast<const float*>(weight));
          return [at](int tap) { return load(at + tap * 16); };
        },
        [&](std::int64_t r, vec<float> sum) {
          const std::int64_t at = r * h.out_stride;
          vec<float> more{};
          if (residual) more = dst.load(residual + at, w.out);
          dst.store(to + at, w.out, finish_sum(sum, residual ? &more : nullptr, d.relu));
        });
  }
}

inline bool rolls_in_pairs(const Dense& d) {
  return d.axis[2].source <= kPairWidth && d.axis[2].out <= kPairWidth;
}

template <int K>
void roll_planes(const Dense& problem) {
  const Dense d = ascending(problem);
  const std::int64_t pixels = imax(1, d.axis[1].out * d.axis[2].out);
  if (rolls_in_pairs(d))
    return parallel_for(ceil_div(d.groups, 2), ceil_div(kRolledPixels, 2 * d.n * pixels),
                        [&](std::int64_t begin, std::int64_t end) {
                          for (std::int64_t i = begin; i < end; ++i) roll_pair<K>(d, 2 * i, 0, d.n);
                        });
  parallel_for(d.n * d.groups, ceil_div(kRolledPixels, pixels), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) roll_plane<K>(d, i / d.groups, i % d.groups);
  });
}

// f(K) for windows of K x K taps, K as a constant.
template <class F>
void with_window(const Dense& d, F&& f) {
  const std::int64_t taps = d.axis[1].taps;
  if (taps == 3) return f(std::integral_constant<int, 3>{});
  if (taps == 5) return f(std::integral_constant<int, 5>{});
  f(std::integral_constant<int, 7>{});
}

inline void run_rolling(const Dense& d) {
  with_window(d, [&](auto k) { roll_planes<k>(d); });
}

// Planes of one slice, square windows of 3, 5 or 7 taps at stride 1, pixels next to each other.
inline bool rolled_geometry(const Dense& d) {
  const Axis &depth = d.axis[0], &h = d.axis[1], &w = d.axis[2];
  const auto plain = [](const Axis& a) { return a.step == 1 && a.offset_step == 1; };
  return d.dtype == DType::f32 && depth.source == 1 && depth.out == 1 && depth.taps == 1 &&
         depth.offset == 0 && plain(h) && plain(w) && h.taps == w.taps &&
         (h.taps == 3 || h.taps == 5 || h.taps == 7) && w.source_stride == 1 && w.out_stride == 1;
}

// Whether a problem is one that run_rolling takes. Output rows above all of the image have no row to end
// them.
inline bool rolls(const Dense& problem) {
  const Dense d = ascending(problem);
  return rolled_geometry(d) && -d.axis[1].offset < d.axis[1].taps &&
         (d.axis[1].taps < 7 || rolls_in_pairs(d));
}

#else

inline bool rolls(const Dense&) { return false; }
inline void run_rolling(const Dense&) {}

#endif

}  // namespace
}  // namespace convnorm::conv
