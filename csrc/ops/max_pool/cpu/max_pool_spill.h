// What the kernels share that walk dense planes row by row in whole vectors, however narrow the rows are.
//
// A row's last vector reads on into the next row, and writes into it. Rows are written in the order of
// memory, so that the next row overwrites what was spilled. Where memory ends, at the first and last rows of
// a tensor or of a task's planes, a row is staged in scratch memory with room on both sides.
#pragma once

namespace convnorm::max_pool {
namespace {

// Where plane q of n*c starts in each tensor.
struct PlaneStart {
  std::int64_t input, output, argmax;
};

inline PlaneStart plane_start(const Params& p, std::int64_t q) {
  const std::int64_t n = q / p.c, c = q % p.c;
  const auto start = [n, c](const Strides& s) { return n * s.n + c * s.c; };
  return {start(p.input), start(p.output), start(p.argmax)};
}

// f(q, start) for planes [begin, end): a division per plane would cost as much as a small plane.
template <class F>
inline __attribute__((always_inline)) void each_plane_start(const Params& p, std::int64_t begin,
                                                            std::int64_t end, F&& f) {
  for (std::int64_t q = begin; q < end;) {
    PlaneStart start = plane_start(p, q);
    const std::int64_t input = p.input.c, output = p.output.c, argmax = p.argmax.c;
    const std::int64_t image_end = imin(end, (q / p.c + 1) * p.c);
    for (; q < image_end; ++q) {
      f(q, start);
      start = {start.input + input, start.output + output, start.argmax + argmax};
    }
  }
}

// Elements from a tensor's first to its last: all of them may be read.
inline std::int64_t extent(const Params& p, const Strides& s, const Dims& size) {
  std::int64_t last = (p.n - 1) * s.n + (p.c - 1) * s.c;
  for (int d = 0; d < kSpatial; ++d) last += (size[d] - 1) * s.s[d];
  return last + 1;
}

// Planes of one slab follow each other without gaps: their rows are those of one tall plane.
inline bool planes_follow(const Params& p, const Strides& s, const Dims& size) {
  return size[0] == 1 && (size[1] == 1 || s.s[1] == size[2]) && (p.c == 1 || s.c == size[1] * size[2]) &&
         (p.n == 1 || s.n == p.c * size[1] * size[2]);
}

// The problem of `planes` planes that follow each other, as one.
inline Params tall_plane(Params p, std::int64_t planes) {
  p.in[1] *= planes;
  p.out[1] *= planes;
  p.input.s[1] = p.in[2];
  p.output.s[1] = p.argmax.s[1] = p.out[2];
  return p;
}

// How many of n rows, `step` apart, lie within `room` elements with `width` elements each.
inline std::int64_t rows_within(std::int64_t room, std::int64_t width, std::int64_t step, std::int64_t n) {
  if ((n - 1) * step + width <= room) return n;
  return room < width ? 0 : imin(n, (room - width) / step + 1);
}

// --- lanes ---------------------------------------------------------------------------------------

template <class C, int... i>
inline ivec<C> counting(std::integer_sequence<int, i...>) {
  return ivec<C>{i...};
}

// All bits in the lanes whose column, j + lane, lies outside [0, columns): a code or'ed with them names no
// tap.
template <class C>
inline ivec<C> outside(std::int64_t j, std::int64_t columns) {
  const ivec<C> o = counting<C>(kEachLane<C>) + splat_code<C>(j);
  return (o < splat_code<C>(0)) | (o >= splat_code<C>(columns));
}

// to[0, 2 lanes) = even[0], odd[0], even[1], ...
template <class C, class T>
inline void store_interleaved(T* to, vec<C> even, vec<C> odd) {
  store(to, interleave_low(even, odd, kEachLane<C>));
  store(to + kLanes<C>, interleave_high(even, odd, kEachLane<C>));
}

}  // namespace
}  // namespace convnorm::max_pool
