// The transforms of Winograd's F(m x m, r x r), m + r = 7: the m x m outputs of an r x r window from 36
// products instead of m^2 r^2, which are 144 for a 3x3 or 4x4 window and 100 for 2x2 or 5x5.
//
// In one dimension, m outputs of an r-tap filter are the coefficients of a product of polynomials, found from
// its values at 6 points; in two dimensions the same is done along both axes (Lavin & Gray 2015, "Fast
// Algorithms for Convolutional Neural Networks"). For a 6x6 input tile d (neighbouring tiles overlap by
// r - 1) and a filter g:
//
//   Y = A' [ sum over channels of (G g G') . (B' d B) ] A           . is element by element, ' transposes
//
// With the points 0, a, -a, b, -b and infinity (Toom and Cook's construction), p = 1/(2a2(a2-b2)) and
// q = 1/(2b2(b2-a2)), B' is the same for all, A and G have a column for each output or tap:
//
//        | a2b2   0   -(a2+b2)   0      1  0 |        | 1/a2b2  0    0     ..  0 |
//        | 0    -ab2    -b2      a      1  0 |        | p     p a  p a2    ..    |
//   B' = | 0     ab2    -b2     -a      1  0 |    G = | p    -p a  p a2    ..    |
//        | 0    -ba2    -a2      b      1  0 |        | q     q b  q b2    ..    |
//        | 0     ba2    -a2     -b      1  0 |        | q    -q b  q b2    ..    |
//        | 0    a2b2     0    -(a2+b2)  0  1 |        | 0     0    0       ..  1 |
//
//        | 1  1   1   1   1  0 |
//   A' = | 0  a  -a   b  -b  0 |
//        | 0  a2  a2  b2  b2 0 |
//        |         ..          |    the last row ends in 1
//
// Rounding errors grow with the entries. The textbook's points, 1 and 2, lose 4 times as much as direct
// sums; reciprocal points around 1 (Barabasz et al. 2020, "Error Analysis and Improving the Accuracy of
// Winograd Convolution for Deep Neural Networks"), here a = 2/3 and b = 3/2, lose twice as much. And ab = 1
// saves products.
//
// By weight the same form is read the other way round: with dY the gradient of a tile's outputs,
//
//   dg = G' [ sum over tiles of (A dY A') . (B' d B) ] G
//
// Everything here works on one vector of channels at a time; a transformed value xi = 6i + j lies `plane`
// elements from the next. Include after cpu/vec.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr int kReach = 6, kPoints = kReach * kReach;  // inputs of a tile, products
inline constexpr int kMostTaps = 5;                          // of a window, along either axis

// Calls body with the taps as a constant.
template <class Body>
inline void with_taps(std::int64_t taps, Body&& body) {
  switch (taps) {
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    default:
      return body(std::integral_constant<int, kMostTaps>{});
  }
}

using F = vec<float>;

inline constexpr double kPointA = 2.0 / 3, kPointB = 3.0 / 2;
inline constexpr float kA = kPointA, kB = kPointB, kA2 = kPointA * kPointA, kB2 = kPointB * kPointB;
inline constexpr float kSum = kPointA * kPointA + kPointB * kPointB;  // a^2 + b^2; a^2 b^2 is 1

// 1, x, x^2, ..., times the scale of G's rows or, for A, 1.
struct Powers {
  float at[kMostTaps];
};
constexpr Powers powers(double x, double scale) {
  Powers p{};
  for (int i = 0; i < kMostTaps; ++i, scale *= x) p.at[i] = static_cast<float>(scale);
  return p;
}
template <bool kScaled>
constexpr Powers powers_of_point(double point, double other) {
  const double squared = point * point;
  return powers(point, kScaled ? 1 / (2 * squared * (squared - other * other)) : 1);
}

// y = B' x. Rows of a point and its negative share the even and the odd part.
inline void input_line(const F (&x)[kReach], F (&y)[kReach]) {
  const F even_a = x[4] - kB2 * x[2], odd_a = x[3] - kB2 * x[1];
  const F even_b = x[4] - kA2 * x[2], odd_b = x[3] - kA2 * x[1];
  y[0] = (x[0] + x[4]) - kSum * x[2];
  y[1] = even_a + kA * odd_a;
  y[2] = even_a - kA * odd_a;
  y[3] = even_b + kB * odd_b;
  y[4] = even_b - kB * odd_b;
  y[5] = (x[1] + x[5]) - kSum * x[3];
}

// y = A x, or G x where scaled: the values of a polynomial with kCount coefficients.
template <int kCount, bool kScaled>
inline void evaluate(const F (&x)[kCount], F (&y)[kReach]) {
  constexpr Powers a = powers_of_point<kScaled>(kPointA, kPointB),
                   b = powers_of_point<kScaled>(kPointB, kPointA);
  F even_a = a.at[0] * x[0], odd_a = a.at[1] * x[1];
  F even_b = b.at[0] * x[0], odd_b = b.at[1] * x[1];
#pragma GCC unroll 4
  for (int i = 2; i < kCount; ++i) {
    (i % 2 ? odd_a : even_a) += a.at[i] * x[i];
    (i % 2 ? odd_b : even_b) += b.at[i] * x[i];
  }
  y[0] = x[0];
  y[1] = even_a + odd_a;
  y[2] = even_a - odd_a;
  y[3] = even_b + odd_b;
  y[4] = even_b - odd_b;
  y[5] = x[kCount - 1];
}

// y = A' x, or G' x where scaled.
template <int kCount, bool kScaled>
inline void interpolate(const F (&x)[kReach], F (&y)[kCount]) {
  constexpr Powers a = powers_of_point<kScaled>(kPointA, kPointB),
                   b = powers_of_point<kScaled>(kPointB, kPointA);
  const F sum_a = x[1] + x[2], diff_a = x[1] - x[2];
  const F sum_b = x[3] + x[4], diff_b = x[3] - x[4];
#pragma GCC unroll 5
  for (int i = 0; i < kCount; ++i) {
    F sum = a.at[i] * (i % 2 ? diff_a : sum_a);
    if (i == 0) sum = x[0] + sum;
    if (i == kCount - 1) sum += x[5];
    y[i] = sum + b.at[i] * (i % 2 ? diff_b : sum_b);
  }
}

template <int kSide>
inline void tile_line(const F (&x)[kSide], F (&y)[kReach]) {
  if constexpr (kSide == kReach)
    input_line(x, y);
  else
    evaluate<kSide, false>(x, y);
}

// How many of the points along each axis are wanted: all, or those before infinity.
struct Wanted {
  int h = kReach, w = kReach;
};

// B' d B of one tile of inputs, or A dY A' of one of gradients and in a 37th plane their sum; pixel (i, j) is
// at rows[i] + j * column, and has `lanes` channels or, if whole, a vector of them.
template <int kSide, bool kWhole>
inline void transform_tile(const float* const (&rows)[kSide], std::int64_t column, std::int64_t lanes,
                           float* to, std::int64_t plane, Wanted wanted) {
  F half[kReach][kSide], sum{};
#pragma GCC unroll 6
  for (int j = 0; j < kSide; ++j) {
    F x[kSide], y[kReach];
    for (int i = 0; i < kSide; ++i)
      x[i] = kWhole ? load(rows[i] + j * column) : load_n(rows[i] + j * column, lanes);
    for (int i = 0; i < kSide; ++i) sum += x[i];
    tile_line(x, y);
    for (int i = 0; i < kReach; ++i) half[i][j] = y[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kReach; ++i) {
    if (i >= wanted.h) return;
    F y[kReach];
    tile_line(half[i], y);
    for (int j = 0; j < kReach; ++j)
      if (j < wanted.w) store(to + (i * kReach + j) * plane, y[j]);
  }
  if constexpr (kSide != kReach) store(to + kPoints * plane, sum);
}

// U = G g G' of one filter, whose tap (i, j) is at g + i * row + j * column. Of fewer than kTaps taps along
// an axis the last is zero, as are the values at infinity, which are left out.
template <int kTaps>
inline void transform_weight(const float* g, std::int64_t row, std::int64_t column, std::int64_t taps_h,
                             std::int64_t taps_w, float* u, std::int64_t plane) {
  const Wanted wanted{kReach - (taps_h < kTaps), kReach - (taps_w < kTaps)};
  F half[kReach][kTaps];
#pragma GCC unroll 5
  for (int j = 0; j < kTaps; ++j) {
    F x[kTaps], y[kReach];
    for (int i = 0; i < kTaps; ++i) x[i] = i < taps_h && j < taps_w ? load(g + i * row + j * column) : F{};
    evaluate<kTaps, true>(x, y);
    for (int i = 0; i < kReach; ++i) half[i][j] = y[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kReach; ++i) {
    if (i >= wanted.h) return;
    F y[kReach];
    evaluate<kTaps, true>(half[i], y);
    for (int j = 0; j < kReach; ++j)
      if (j < wanted.w) store(u + (i * kReach + j) * plane, y[j]);
  }
}

// A' m A, or G' m G where scaled; m is read a plane per value, those that are not wanted are zero.
template <int kCount, bool kScaled>
inline void transform_back(const float* m, std::int64_t plane, Wanted wanted, F (&out)[kCount][kCount]) {
  constexpr int kLast = kReach - 1;
  const bool last_row = wanted.h == kReach, last_column = wanted.w == kReach;
  F half[kCount][kReach];
#pragma GCC unroll 6
  for (int j = 0; j < kReach; ++j) {
    F x[kReach], y[kCount];
    for (int i = 0; i < kReach; ++i)
      x[i] = (i < kLast || last_row) && (j < kLast || last_column) ? load(m + (i * kReach + j) * plane) : F{};
    interpolate<kCount, kScaled>(x, y);
    for (int i = 0; i < kCount; ++i) half[i][j] = y[i];
  }
#pragma GCC unroll 5
  for (int i = 0; i < kCount; ++i) interpolate<kCount, kScaled>(half[i], out[i]);
}

}  // namespace
}  // namespace convnorm::conv
