// The transforms of Winograd's F(4x4, 3x3): 16 outputs of a 3x3 window from 36 products instead of 144.
//
// In one dimension, 4 outputs of a 3-tap filter are the coefficients of a product of polynomials, found from
// its values at 6 points; in two dimensions the same is done along both axes (Lavin & Gray 2015, "Fast
// Algorithms for Convolutional Neural Networks"). For a 6x6 input tile d (neighbouring tiles overlap by 2)
// and a filter g:
//
//   Y = A' [ sum over channels of (G g G') . (B' d B) ] A           . is element by element, ' transposes
//
// With the points 0, a, -a, b, -b and infinity (Toom and Cook's construction), p = 1/(2a2(a2-b2)) and
// q = 1/(2b2(b2-a2)):
//
//        | a2b2   0   -(a2+b2)   0      1  0 |      | 1/a2b2   0     0    |         | 1  1   1   1   1  0 |
//        | 0    -ab2    -b2      a      1  0 |      | p      p a   p a2   |    A' = | 0  a  -a   b  -b  0 |
//   B' = | 0     ab2    -b2     -a      1  0 |  G = | p     -p a   p a2   |         | 0  a2  a2  b2  b2 0 |
//        | 0    -ba2    -a2      b      1  0 |      | q      q b   q b2   |         | 0  a3 -a3  b3 -b3 1 |
//        | 0     ba2    -a2     -b      1  0 |      | q     -q b   q b2   |
//        | 0    a2b2     0    -(a2+b2)  0  1 |      | 0      0     1      |
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

inline constexpr int kTile = 4, kReach = 6, kPoints = kReach * kReach;  // outputs, inputs, products

using F = vec<float>;

inline constexpr float kA = 2.0 / 3, kB = 3.0 / 2;
inline constexpr float kA2 = 4.0 / 9, kB2 = 9.0 / 4, kA3 = 8.0 / 27, kB3 = 27.0 / 8;
inline constexpr float kSum = 4.0 / 9 + 9.0 / 4;  // a^2 + b^2; a^2 b^2 is 1
inline constexpr float kP = 1 / (2 * 4.0 / 9 * (4.0 / 9 - 9.0 / 4));
inline constexpr float kQ = 1 / (2 * 9.0 / 4 * (9.0 / 4 - 4.0 / 9));

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

// y = G x
inline void weight_line(const F (&x)[3], F (&y)[kReach]) {
  const F even_a = kP * x[0] + (kP * kA2) * x[2], odd_a = (kP * kA) * x[1];
  const F even_b = kQ * x[0] + (kQ * kB2) * x[2], odd_b = (kQ * kB) * x[1];
  y[0] = x[0];
  y[1] = even_a + odd_a;
  y[2] = even_a - odd_a;
  y[3] = even_b + odd_b;
  y[4] = even_b - odd_b;
  y[5] = x[2];
}

// y = A' x
inline void output_line(const F (&x)[kReach], F (&y)[kTile]) {
  const F sum_a = x[1] + x[2], diff_a = x[1] - x[2];
  const F sum_b = x[3] + x[4], diff_b = x[3] - x[4];
  y[0] = (x[0] + sum_a) + sum_b;
  y[1] = kA * diff_a + kB * diff_b;
  y[2] = kA2 * sum_a + kB2 * sum_b;
  y[3] = (kA3 * diff_a + x[5]) + kB3 * diff_b;
}

// y = A x
inline void gradient_line(const F (&x)[kTile], F (&y)[kReach]) {
  const F even_a = x[0] + kA2 * x[2], odd_a = kA * x[1] + kA3 * x[3];
  const F even_b = x[0] + kB2 * x[2], odd_b = kB * x[1] + kB3 * x[3];
  y[0] = x[0];
  y[1] = even_a + odd_a;
  y[2] = even_a - odd_a;
  y[3] = even_b + odd_b;
  y[4] = even_b - odd_b;
  y[5] = x[3];
}

// y = G' x
inline void weight_gradient_line(const F (&x)[kReach], F (&y)[3]) {
  const F sum_a = x[1] + x[2], diff_a = x[1] - x[2];
  const F sum_b = x[3] + x[4], diff_b = x[3] - x[4];
  y[0] = (x[0] + kP * sum_a) + kQ * sum_b;
  y[1] = (kP * kA) * diff_a + (kQ * kB) * diff_b;
  y[2] = ((kP * kA2) * sum_a + x[5]) + (kQ * kB2) * sum_b;
}

inline void tile_line(const F (&x)[kReach], F (&y)[kReach]) { input_line(x, y); }
inline void tile_line(const F (&x)[kTile], F (&y)[kReach]) { gradient_line(x, y); }

// B' d B of one tile of inputs, or A dY A' of one of gradients and in a 37th plane their sum; pixel (i, j) is
// at rows[i] + j * column.
template <int kSide>
inline void transform_tile(const float* const (&rows)[kSide], std::int64_t column, float* to,
                           std::int64_t plane) {
  F half[kReach][kSide], sum{};
#pragma GCC unroll 6
  for (int j = 0; j < kSide; ++j) {
    F x[kSide], y[kReach];
    for (int i = 0; i < kSide; ++i) x[i] = load(rows[i] + j * column);
    for (int i = 0; i < kSide; ++i) sum += x[i];
    tile_line(x, y);
    for (int i = 0; i < kReach; ++i) half[i][j] = y[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kReach; ++i) {
    F y[kReach];
    tile_line(half[i], y);
    for (int j = 0; j < kReach; ++j) store(to + (i * kReach + j) * plane, y[j]);
  }
  if constexpr (kSide == kTile) store(to + kPoints * plane, sum);
}

// U = G g G' of one filter, whose tap (i, j) is at g + i * row + j * column.
inline void transform_weight(const float* g, std::int64_t row, std::int64_t column, float* u,
                             std::int64_t plane) {
  F half[kReach][3];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    F x[3], y[kReach];
    for (int i = 0; i < 3; ++i) x[i] = load(g + i * row + j * column);
    weight_line(x, y);
    for (int i = 0; i < kReach; ++i) half[i][j] = y[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kReach; ++i) {
    F y[kReach];
    weight_line(half[i], y);
    for (int j = 0; j < kReach; ++j) store(u + (i * kReach + j) * plane, y[j]);
  }
}

// Y = A' m A + bias of one tile.
inline void transform_output(const float* m, std::int64_t plane, F bias, F (&out)[kTile][kTile]) {
  F half[kTile][kReach];
#pragma GCC unroll 6
  for (int j = 0; j < kReach; ++j) {
    F x[kReach], y[kTile];
    for (int i = 0; i < kReach; ++i) x[i] = load(m + (i * kReach + j) * plane);
    output_line(x, y);
    for (int i = 0; i < kTile; ++i) half[i][j] = y[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i) {
    output_line(half[i], out[i]);
    for (int j = 0; j < kTile; ++j) out[i][j] += bias;
  }
}

// dg = G' m G of one filter; m is read a plane per value.
inline void transform_weight_gradient(const float* m, std::int64_t plane, F (&out)[9]) {
  F half[3][kReach];
#pragma GCC unroll 6
  for (int j = 0; j < kReach; ++j) {
    F x[kReach], y[3];
    for (int i = 0; i < kReach; ++i) x[i] = load(m + (i * kReach + j) * plane);
    weight_gradient_line(x, y);
    for (int i = 0; i < 3; ++i) half[i][j] = y[i];
  }
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    F y[3];
    weight_gradient_line(half[i], y);
    for (int j = 0; j < 3; ++j) out[3 * i + j] = y[j];
  }
}

}  // namespace
}  // namespace convnorm::conv
