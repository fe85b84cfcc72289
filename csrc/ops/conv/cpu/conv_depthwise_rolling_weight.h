// Depthwise by weight for 3x3, 5x5 and 7x7 windows of stride 1 with vectors along rows that are read where
// they lie: NCHW. Only where loads may leave out lanes at no cost (AVX-512, float32).
//
//   task = (channel, share of its images):         in parallel
//     for 16 columns of outputs, up to 64 rows:    K * K sums in registers (7x7: of 3, then 2, then 2
//     columns)
//       for each row y of the source, once:        the K rows of gout that it meets are in registers
//         for tap column j:  x = 16 pixels of the row, from column j on; those outside the image are zero
//           for tap row i:   sum[i][j] += gout[y - i] * x
//     add up lanes
//
// Planes of at most 8 columns go in pairs as they do forward: conv_depthwise_rolling.h. Shares are cut by
// shape alone, and added in order.
//
// Include after conv_depthwise_rolling.h and conv_depthwise_weight.h.
#pragma once

namespace convnorm::conv {
namespace {

#if CONVNORM_VECTOR_BYTES == 64

inline constexpr std::int64_t kWeighRows = 64;  // then sums in registers are added to memory

// Tap columns that are summed together: K * J sums, K rows of gout and the pixels fit 32 registers.
template <int K>
inline constexpr int kTapColumns = K < 7 ? K : 3;

// Adds to K * K vectors of sums what the output rows [begin, end) give to the tap columns [j0, j0 + J).
// gout(r) is row r of outputs.
template <int K, int J, class Rows, class Gout>
[[gnu::always_inline]] inline void weigh_rows(const Axis& h, Rows rows, const Gout& gout, std::int64_t begin,
                                              std::int64_t end, int j0, vec<float>* sums) {
  const auto row_of = [&](std::int64_t r) { return r >= begin && r < end ? gout(r) : vec<float>{}; };
  // Row y of the source is tap row i of output row y - h.offset - i.
  const std::int64_t first = imax(0, begin + h.offset), last = imin(h.source, end + h.offset + K - 1);
  vec<float> acc[K][J], g[K];
  for (int i = 0; i < K; ++i)
    for (int j = 0; j < J; ++j) acc[i][j] = vec<float>{};
  for (int i = 0; i < K - 1; ++i) g[i] = row_of(first - 1 - h.offset - i);
  for (std::int64_t y = first; y < last; ++y) {
    rows.take(y * h.source_stride);
    for (int i = K - 1; i > 0; --i) g[i] = g[i - 1];
    const std::int64_t r = y - h.offset;
    g[0] = row_of(r);
    if (r - (K - 1) >= begin && r < end) {
      for (int j = 0; j < J; ++j) {
        const vec<float> pixels = rows.pixels(j0 + j);
        for (int i = 0; i < K; ++i) acc[i][j] += g[i] * pixels;
      }
      continue;
    }
    vec<float> pixels[J];
    for (int j = 0; j < J; ++j) pixels[j] = rows.pixels(j0 + j);
    for (int i = 0; i < K; ++i)  // a NaN counts only in the rows that read it
      if (r - i >= begin && r - i < end)
        for (int j = 0; j < J; ++j) acc[i][j] += g[i] * pixels[j];
  }
  for (int i = 0; i < K; ++i)
    for (int j = 0; j < J; ++j) sums[i * K + j0 + j] += acc[i][j];
}

// All rows and tap columns.
template <int K, class Rows, class Gout>
void weigh_block(const Axis& h, const Rows& rows, const Gout& gout, vec<float>* sums) {
  constexpr int J = kTapColumns<K>;
  for (std::int64_t r = 0; r < h.out; r += kWeighRows) {
    const std::int64_t end = imin(h.out, r + kWeighRows);
    weigh_rows<K, J>(h, rows, gout, r, end, 0, sums);
    if constexpr (K == 7) {
      weigh_rows<K, 2>(h, rows, gout, r, end, 3, sums);
      weigh_rows<K, 2>(h, rows, gout, r, end, 5, sums);
    }
  }
}

// The sum of rows: float sums of one row, joined in double.
template <class Row>
double sum_rows(std::int64_t rows, std::int64_t columns, const Row& row, __mmask16 lanes) {
  Wide<float> sum{};
  for (std::int64_t r = 0; r < rows; ++r) {
    vec<float> part{};
    for (std::int64_t x = 0; x < columns; x += 16) part += row(r, x);
    const Wide<float> wide = widen(vec<float>(_mm512_maskz_mov_ps(lanes, part)));
    for (int i = 0; i < Wide<float>::kParts; ++i) sum.part[i] += wide.part[i];
  }
  double total = 0;
  for (int i = 0; i < Wide<float>::kParts; ++i) total += lane_sum<double>(sum.part[i]);
  return total;
}

// Images [begin, end) of channel c.
template <int K>
void weigh_wide(const Dense& d, const Shares<float>& shares, std::int64_t share, std::int64_t c,
                std::int64_t begin, std::int64_t end) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  vec<float> sums[K * K] = {};
  double bias = 0;
  for (std::int64_t n = begin; n < end; ++n) {
    const float* source = static_cast<const float*>(d.src) + n * d.src_n + c * d.src_c;
    const float* gout = static_cast<const float*>(d.dst) + n * d.dst_n + c * d.dst_c;
    for (std::int64_t x = 0; x < w.out; x += 16) {
      const __mmask16 outputs = columns_inside(x, w.out);
      weigh_block<K>(
          h, WideRows<K, true>(w, source, x, outputs),
          [&](std::int64_t r) -> vec<float> {
            return _mm512_maskz_loadu_ps(outputs, gout + r * h.out_stride + x);
          },
          sums);
    }
    const auto row = [&](std::int64_t r, std::int64_t x) -> vec<float> {
      return _mm512_maskz_loadu_ps(columns_inside(x, w.out), gout + r * h.out_stride + x);
    };
    if (d.bias) bias += sum_rows(h.out, w.out, row, 0xffff);
  }
  lane_sums(reinterpret_cast<const float*>(sums), K * K, shares.sums_of(share, c));
  *shares.bias_of(share, c) = bias;
}

// The same of channels c and c + 1, whose planes are the halves of a vector.
template <int K>
void weigh_pair(const Dense& d, const Shares<float>& shares, std::int64_t share, std::int64_t c,
                std::int64_t begin, std::int64_t end) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  const bool both = c + 1 < d.groups;
  const Pair source_pair{d.src_c, both}, gout_pair{d.dst_c, both};
  vec<float> sums[K * K] = {};
  double bias[2] = {};
  for (std::int64_t n = begin; n < end; ++n) {
    const float* source = static_cast<const float*>(d.src) + n * d.src_n + c * d.src_c;
    const float* gout = static_cast<const float*>(d.dst) + n * d.dst_n + c * d.dst_c;
    const auto row = [&](std::int64_t r, std::int64_t = 0) {
      return gout_pair.load(gout + r * h.out_stride, w.out);
    };
    weigh_block<K>(h, PairedRows<K>(w, source_pair, source), row, sums);
    for (int half = 0; d.bias && half < 1 + both; ++half)
      bias[half] += sum_rows(h.out, 1, row, half == 0 ? 0x00ff : 0xff00);
  }
  for (int half = 0; half < 1 + both; ++half) {
    vec<float> of_half[K * K];
    for (int t = 0; t < K * K; ++t) of_half[t] = _mm512_maskz_mov_ps(half == 0 ? 0x00ff : 0xff00, sums[t]);
    lane_sums(reinterpret_cast<const float*>(of_half), K * K, shares.sums_of(share, c + half));
    *shares.bias_of(share, c + half) = bias[half];
  }
}

template <int K>
void weigh_rolling(const Dense& d) {
  const std::int64_t shares = imax(1, imin(ceil_div(kWantedShares, d.groups), d.n));
  Shares<float> sums{nullptr, nullptr, shares, d.groups, K * K, 1};
  carve(Slot::shared, [&](Carver& memory) { sums.take(memory); });
  const bool pairs = rolls_in_pairs(d);
  const std::int64_t step = pairs ? 2 : 1;
  parallel_for(ceil_div(d.groups, step) * shares, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t c = i / shares * step, share = i % shares;
      const std::int64_t n0 = d.n * share / shares, n1 = d.n * (share + 1) / shares;
      pairs ? weigh_pair<K>(d, sums, share, c, n0, n1) : weigh_wide<K>(d, sums, share, c, n0, n1);
    }
  });
  parallel_for(d.groups, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) write_channel<float>(d, sums, TapOrder{1, 1}, c, c, 0);
  });
}

inline void run_weigh_rolling(const Dense& d) {
  with_window(d, [&](auto k) { weigh_rolling<k>(d); });
}

// Few planes are cut into strips instead, which all threads share.
inline bool weighs_rolling(const Dense& d) { return rolled_geometry(d) && d.n * d.groups >= kWantedShares; }

#else

inline bool weighs_rolling(const Dense&) { return false; }
inline void run_weigh_rolling(const Dense&) {}

#endif

}  // namespace
}  // namespace convnorm::conv
