// Planes turned into lanes: NCHW work that vectors along a row do not suit (narrow maps, uneven windows) is
// done on as many planes at once as a vector has lanes. Include below a cpu/target_*.h, after vec.h.
//
// Squares of lanes x lanes are transposed in registers while rows are read and while results are written:
// about half a cycle per element each way. In between, position x of all planes is the vector at x * lanes.
#pragma once

namespace convnorm {
namespace {

template <class T>
inline constexpr int kPlanes = kLanes<compute_t<T>>;  // planes of a group

// A group of planes of one tensor. Lanes beyond `count` read the first plane again and are never written.
template <class T>
struct PlaneGroup {
  T* plane[kPlanes<std::remove_const_t<T>>];
  std::int64_t count;
};

// The group that starts at plane q of n * c.
template <class T>
inline PlaneGroup<T> plane_group(T* data, std::int64_t stride_n, std::int64_t stride_c, std::int64_t n,
                                 std::int64_t c, std::int64_t q) {
  constexpr int lanes = kPlanes<std::remove_const_t<T>>;
  PlaneGroup<T> group;
  group.count = imin(lanes, n * c - q);
  std::int64_t image = q / c,
               channel = q % c;  // carried on: a division per lane would cost as much as the work
  T* const first = data + image * stride_n + channel * stride_c;
  for (int l = 0; l < lanes; ++l) {
    group.plane[l] = l < group.count ? data + image * stride_n + channel * stride_c : first;
    if (++channel == c) channel = 0, ++image;
  }
  return group;
}

// A square at element `at` of every row in `row`, summed over the rows and transposed.
template <int kRows, class T, class C>
inline __attribute__((always_inline)) void turn_square(const PlaneGroup<const T>& from,
                                                       const std::int64_t* row, std::int64_t rows,
                                                       std::int64_t at, C* to) {
  constexpr int lanes = kLanes<C>;
  if (kRows) rows = kRows;
  vec<C> v[lanes];
#pragma GCC unroll 16
  for (int l = 0; l < lanes; ++l) v[l] = load(from.plane[l] + row[0] + at);
  for (std::int64_t r = 1; r < rows; ++r) {
    const std::int64_t start = row[r] + at;
#pragma GCC unroll 16
    for (int l = 0; l < lanes; ++l) v[l] += load(from.plane[l] + start);
  }
  transpose<C>(v);
#pragma GCC unroll 16
  for (int l = 0; l < lanes; ++l) store(to + l * lanes, v[l]);
}

// to[x][lane] = sum over the rows of from[lane][row + first + x * step], for x in [0, n).
template <class T, class C>
inline void turn_in(const PlaneGroup<const T>& from, const std::int64_t* row, std::int64_t rows,
                    std::int64_t first, std::int64_t step, std::int64_t n, C* to) {
  constexpr int lanes = kLanes<C>;
  if (step == 1 && n >= lanes) {
    const auto square = rows == 1   ? turn_square<1, T, C>
                        : rows == 2 ? turn_square<2, T, C>
                        : rows == 3 ? turn_square<3, T, C>
                                    : turn_square<0, T, C>;
    for (std::int64_t x = 0; x < n; x += lanes) {
      const std::int64_t at = imin(x, n - lanes);  // the last square overlaps the one before it
      square(from, row, rows, first + at, to + at * lanes);
    }
    return;
  }
  for (int l = 0; l < lanes; ++l)
    for (std::int64_t x = 0; x < n; ++x) {
      const T* at = from.plane[l] + first + x * step;
      C sum = load1(at + row[0]);
      for (std::int64_t r = 1; r < rows; ++r) sum += load1(at + row[r]);
      to[x * lanes + l] = sum;
    }
}

// The sum of n >= lanes adjacent columns of every row, from element `first` on: one turn adds up the lanes.
template <class T, class C = compute_t<T>>
inline vec<C> fold_in(const PlaneGroup<const T>& from, const std::int64_t* row, std::int64_t rows,
                      std::int64_t first, std::int64_t n) {
  constexpr int lanes = kLanes<C>;
  vec<C> v[lanes];
  ivec<C> rest;  // lanes of the last vector that are not in the one before it
  for (int l = 0; l < lanes; ++l) rest[l] = l >= lanes - n % lanes ? -1 : 0;
#pragma GCC unroll 16
  for (int l = 0; l < lanes; ++l) v[l] = vec<C>{};
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t start = row[r] + first;
    std::int64_t x = 0;
    for (; x + lanes <= n; x += lanes) {
#pragma GCC unroll 16
      for (int l = 0; l < lanes; ++l) v[l] += load(from.plane[l] + start + x);
    }
    if (x == n) continue;
#pragma GCC unroll 16
    for (int l = 0; l < lanes; ++l) {
      const vec<C> last = load(from.plane[l] + start + n - lanes);
      v[l] += rest ? last : vec<C>{};
    }
  }
  transpose<C>(v);
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) v[l] += v[l + half];
  return v[0];
}

// to[lane][x * step] = from[x][lane] for x in [0, n).
template <class T, class C>
inline void turn_out(const C* from, std::int64_t n, std::int64_t step, const PlaneGroup<T>& to,
                     std::int64_t first) {
  constexpr int lanes = kLanes<C>;
  if (step != 1 || n < lanes) {
    for (int l = 0; l < to.count; ++l)
      for (std::int64_t x = 0; x < n; ++x) store1(to.plane[l] + (first + x) * step, from[x * lanes + l]);
    return;
  }
  for (std::int64_t x = 0; x < n; x += lanes) {
    const std::int64_t at = imin(x, n - lanes);
    vec<C> v[lanes];
#pragma GCC unroll 16
    for (int l = 0; l < lanes; ++l) v[l] = load(from + (at + l) * lanes);
    transpose<C>(v);
    if (to.count == lanes) {
#pragma GCC unroll 16
      for (int l = 0; l < lanes; ++l) store(to.plane[l] + first + at, v[l]);
    } else {
      for (int l = 0; l < lanes; ++l)
        if (l < to.count) store(to.plane[l] + first + at, v[l]);
    }
  }
}

}  // namespace
}  // namespace convnorm
