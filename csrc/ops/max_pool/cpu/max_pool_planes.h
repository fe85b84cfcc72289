// Max pooling of whole planes: one window, which is the image, in NCHW.
//
//   forward   task = planes: a plane is one run of elements. Each lane keeps its first maximum; the first of
//             these is the plane's. Planes with NaN, whose last one wins, go element by element
//   backward  task = planes: some are zeroed while they are in L1, then each gradient is stored where its
//             maximum was
#pragma once

namespace convnorm::max_pool {
namespace {

template <class V, int... i>
inline V swap_lanes(V v, int distance, std::integer_sequence<int, i...>) {
  typedef decltype(v < v) I;
  return __builtin_shuffle(v, I{i...} ^ distance);
}

// In all lanes: the largest, or the smallest.
template <class C>
inline vec<C> largest_lane(vec<C> v) {
#pragma GCC unroll 4
  for (int half = kLanes<C> / 2; half > 0; half /= 2) v = vmax(v, swap_lanes(v, half, kEachLane<C>));
  return v;
}
template <class C>
inline ivec<C> smallest_lane(ivec<C> v) {
#pragma GCC unroll 4
  for (int half = kLanes<C> / 2; half > 0; half /= 2) v = vmin(v, swap_lanes(v, half, kEachLane<C>));
  return v;
}

// The rule of max_pool.h, element by element.
template <class T>
inline std::int64_t scan_for_max(const T* x, std::int64_t n) {
  auto best = load1(x);
  std::int64_t position = 0;
  for (std::int64_t i = 1; i < n; ++i) {
    const auto value = load1(x + i);
    if (!(value > best || value != value)) continue;
    best = value;
    position = i;
  }
  return position;
}

// Where the maximum of n elements is.
template <class T>
inline std::int64_t find_max(const T* x, std::int64_t n) {
  using C = compute_t<T>;
  constexpr int lanes = kLanes<C>;
  if (n < lanes) return scan_for_max(x, n);
  ivec<C> code = counting<C>(kEachLane<C>);
  Best<C> best{load(x), code};
  ivec<C> ordered = best.value == best.value;
  const auto step = [&](std::int64_t i, ivec<C> position) __attribute__((always_inline)) {
    const vec<C> value = load(x + i);
    const auto wins = value > best.value;
    best = {wins ? value : best.value, wins ? position : best.code};
    ordered &= value == value;
  };
  std::int64_t i = lanes;
  for (; i + lanes <= n; i += lanes) step(i, code += splat_code<C>(lanes));
  // The last vector overlaps the one before it: a position seen twice loses to itself.
  if (i < n) step(n - lanes, counting<C>(kEachLane<C>) + splat_code<C>(n - lanes));
  if (smallest_lane<C>(~ordered)[0] != 0) return scan_for_max(x, n);
  const auto first = best.value == largest_lane<C>(best.value);
  return smallest_lane<C>(first ? best.code : splat_code<C>(n))[0];
}

template <class T, class A>
void forward_planes_of(const Params& p, const T* input, T* output, A* argmax) {
  const std::int64_t size = plane(p);
  parallel_for(p.n * p.c, planes_per_task(size), [&](std::int64_t begin, std::int64_t end) {
    each_plane_start(p, begin, end, [&](std::int64_t, const PlaneStart& start) {
      const T* x = input + start.input;
      const std::int64_t position = find_max(x, size);
      output[start.output] = x[position];
      if constexpr (!std::is_void_v<A>) argmax[start.argmax] = static_cast<A>(position);
    });
  });
}

void forward_planes(const Params& p, const void* input, void* output, void* argmax) {
  dispatch(p.dtype, [&](auto t) {
    with_argmax(p.record, [&](auto* a) {
      using T = decltype(t);
      using A = std::remove_pointer_t<decltype(a)>;
      forward_planes_of(p, static_cast<const T*>(input), static_cast<T*>(output), static_cast<A*>(argmax));
    });
  });
}

// A record that names nothing in the plane adds nothing: it can only come from a caller of the raw op.
template <class T, class A>
void backward_planes_of(const Params& p, const T* grad_output, const A* argmax, T* grad_input) {
  const std::int64_t size = plane(p), block = ceil_div(16384, size * static_cast<std::int64_t>(sizeof(T)));
  parallel_for(p.n * p.c, planes_per_task(size), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t first = begin; first < end; first += block) {
      const std::int64_t last = imin(end, first + block);
      std::memset(grad_input + first * size, 0, (last - first) * size * sizeof(T));
      each_plane_start(p, first, last, [&](std::int64_t q, const PlaneStart& start) {
        const auto place = static_cast<std::int64_t>(argmax[start.argmax]);
        if (place >= 0 && place < size) grad_input[q * size + place] = grad_output[start.output];
      });
    }
  });
}

void backward_planes(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto t) {
    with_argmax(p.record, [&](auto* a) {
      using T = decltype(t);
      using A = std::remove_pointer_t<decltype(a)>;
      if constexpr (!std::is_void_v<A>)
        backward_planes_of(p, static_cast<const T*>(grad_output), static_cast<const A*>(argmax),
                           static_cast<T*>(grad_input));
    });
  });
}

}  // namespace
}  // namespace convnorm::max_pool
