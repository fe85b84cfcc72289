// Max pooling over pairs of columns: windows two wide at stride two, not padded, in NCHW. The pool of VGG and
// LeNet.
//
//   forward   task = planes; for each vector of outputs the window's input rows one after the other, two
//             vectors of columns each, split into even and odd ones within blocks of 16 bytes. The order of
//             the blocks is mended once, in the result
//   backward  task = planes; windows tile the image: a vector of gradients goes to the even columns or to the
//             odd ones of an input row, where the code says so. Nothing is summed, and each gradient is
//             written once
//
// Rows spill into the next (max_pool_spill.h): one of 7 outputs is one vector, with no loop over a remainder.
// Planes that follow each other are taken as one tall plane.
#pragma once

namespace convnorm::max_pool {
namespace {

// --- forward -------------------------------------------------------------------------------------

// Even (kOffset 0) or odd (1) lanes of a and b; 16 bytes of the result come from 16 bytes of each.
template <int kOffset, class V, int... i>
inline V split_blocks(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int block = 16 / sizeof(a[0]), half = block / 2, lanes = sizeof...(i);
  return __builtin_shufflevector(a, b,
                                 (i / block * block + i % half * 2 + kOffset + i % block / half * lanes)...);
}

// What split_blocks made, in order: first the lanes of a, then those of b.
template <class V, int... i>
inline V order_blocks(V v, std::integer_sequence<int, i...>) {
  constexpr int block = 16 / sizeof(v[0]), half = block / 2, from_each = sizeof...(i) / 2;
  return __builtin_shufflevector(v, v, (i % from_each / half * block + i / from_each * half + i % half)...);
}

// Output row `to` of the window rows at first + distance[r].
template <int kRows, bool kRecord, class T>
inline void pool_pairs(const T* first, const std::int64_t* distance, std::int64_t rows, std::int64_t columns,
                       T* to, std::uint8_t* argmax) {
  using C = compute_t<T>;
  constexpr int lanes = kLanes<C>;
  if (kRows) rows = kRows;
  for (std::int64_t j = 0; j < columns; j += lanes) {
    Best<C> best{};
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* from = first + distance[r] + 2 * j;
      const vec<C> a = load(from), b = load(from + lanes);
      const auto code = splat_code<C>(2 * r);
      const vec<C> even = split_blocks<0>(a, b, kEachLane<C>);
      if (r == 0)
        best = {even, code};
      else
        take<kRecord>(best, even, code);
      take<kRecord>(best, split_blocks<1>(a, b, kEachLane<C>), code + 1);
    }
    store(to + j, order_blocks(best.value, kEachLane<C>));
    if constexpr (kRecord) store_codes<C>(argmax + j, order_blocks(best.code, kEachLane<C>));
  }
}

// An output row takes this many columns in whole vectors.
template <class T>
inline std::int64_t vector_columns(const Params& p) {
  constexpr int lanes = kLanes<compute_t<T>>;
  return ceil_div(p.out[2], lanes) * lanes;
}

template <bool kRecord, class T>
struct PairPool {
  const Params& p;
  const T *input_end, *output_end;
  std::int64_t columns = vector_columns<T>(p), rows = p.window.kernel[0] * p.window.kernel[1];
  std::int64_t *distance = nullptr, *staged_distance = nullptr;
  T *input_stage = nullptr, *output_stage = nullptr;
  std::uint8_t* argmax_stage = nullptr;

  void carve(Arena& arena) {
    distance = arena.take<std::int64_t>(rows);
    staged_distance = arena.take<std::int64_t>(rows);
    input_stage = arena.take<T>(rows * 2 * columns);
    output_stage = arena.take<T>(columns);
    argmax_stage = arena.take<std::uint8_t>(columns);
    if (!arena.base) return;
    const Window& w = p.window;
    for (std::int64_t r = 0; r < rows; ++r) {
      distance[r] = r / w.kernel[1] * w.dil[0] * p.input.s[0] + r % w.kernel[1] * w.dil[1] * p.input.s[1];
      staged_distance[r] = r * 2 * columns;
    }
  }

  // n output rows; the first one's window begins at `from`.
  template <int kRows>
  void pool_rows(const T* from, T* to, std::uint8_t* codes, std::int64_t n) const {
    const std::int64_t step = p.window.stride[1] * p.input.s[1], out_w = p.out[2], count = rows;
    const std::int64_t* const row_at = distance;
    for (std::int64_t oh = 0; oh < n; ++oh) {
      pool_pairs<kRows, kRecord>(from, row_at, count, out_w, to, codes);
      from += step;
      to += out_w;
      if (kRecord) codes += out_w;
    }
  }

  void pool_staged(const T* from, T* to, std::uint8_t* codes) const {
    for (std::int64_t r = 0; r < rows; ++r)
      std::memcpy(input_stage + staged_distance[r], from + distance[r], 2 * p.out[2] * sizeof(T));
    pool_pairs<0, kRecord>(input_stage, staged_distance, rows, p.out[2], output_stage, argmax_stage);
    std::memcpy(to, output_stage, p.out[2] * sizeof(T));
    if (kRecord) std::memcpy(codes, argmax_stage, p.out[2]);
  }

  void pool_slab(const T* from, T* to, std::uint8_t* codes) const {
    const std::int64_t step = p.window.stride[1] * p.input.s[1], out_w = p.out[2];
    std::int64_t oh = imin(rows_within(input_end - from, distance[rows - 1] + 2 * columns, step, p.out[1]),
                           rows_within(output_end - to, columns, out_w, p.out[1]));
    rows == 2 ? pool_rows<2>(from, to, codes, oh) : pool_rows<0>(from, to, codes, oh);
    for (; oh < p.out[1]; ++oh)
      pool_staged(from + oh * step, to + oh * out_w, codes + (kRecord ? oh * out_w : 0));
  }
};

// Planes per task, so that starting one costs nothing beside it.
inline std::int64_t planes_per_task(std::int64_t plane_size) { return ceil_div(16384, plane_size); }

template <bool kRecord, class T>
void forward_pairs_of(const Params& p, const T* input, T* output, std::uint8_t* argmax) {
  const std::int64_t slab = p.out[1] * p.out[2], outputs = p.out[0] * slab;
  const bool join = p.in[1] == p.out[1] * p.window.stride[1] && planes_follow(p, p.input, p.in);
  parallel_for(p.n * p.c, planes_per_task(plane(p)), [&](std::int64_t begin, std::int64_t end) {
    const Params task = join ? tall_plane(p, end - begin) : p;
    PairPool<kRecord, T> pool{task, input + extent(p, p.input, p.in), output + end * outputs};
    carve_scratch(Slot::local, [&](Arena& arena) { pool.carve(arena); });
    each_plane_start(p, begin, join ? begin + 1 : end, [&](std::int64_t q, const PlaneStart& start) {
      for (std::int64_t od = 0; od < p.out[0]; ++od) {
        const std::int64_t to = q * outputs + od * slab;
        pool.pool_slab(input + start.input + at(p, 0, od, 0) * p.input.s[0], output + to,
                       kRecord ? argmax + to : nullptr);
      }
    });
  });
}

void forward_pairs(const Params& p, const void* input, void* output, void* argmax) {
  dispatch(p.dtype, [&](auto t) {
    using T = decltype(t);
    const auto pool = p.record == Argmax::none ? forward_pairs_of<false, T> : forward_pairs_of<true, T>;
    pool(p, static_cast<const T*>(input), static_cast<T*>(output), static_cast<std::uint8_t*>(argmax));
  });
}

// --- backward ------------------------------------------------------------------------------------

// A vector of an output row into an input row, whose taps are named `even` and `odd`.
template <class T, class I>
inline __attribute__((always_inline)) void spread_pairs(vec<compute_t<T>> g, I argmax, I even, I odd, T* to) {
  const vec<compute_t<T>> zero{};
  store_interleaved<compute_t<T>>(to, argmax == even ? g : zero, argmax == odd ? g : zero);
}

// Rows of outputs, one below the other, and the input rows that they go to.
template <class T>
struct PairRows {
  const T* grad;
  const std::uint8_t* argmax;
  std::int64_t grad_step, argmax_step, count;
  T* to;
  std::int64_t in_w, code;  // `code` names the first input row's even columns
};

// k_h input rows for each output row. The lanes `beyond` an output row leave zeros.
template <class T, class I>
__attribute__((noinline)) void spread_pair_rows(PairRows<T> rows, std::int64_t k_h, std::int64_t columns,
                                                I beyond) {
  using C = compute_t<T>;
  constexpr int lanes = kLanes<C>;
  const std::int64_t last = columns - lanes, in_w = rows.in_w;
  const bool odd_column = in_w > 2 * columns;
  for (std::int64_t oh = 0; oh < rows.count; ++oh) {
    I even = splat_code<C>(rows.code);
    for (std::int64_t th = 0; th < k_h; ++th, even += 2, rows.to += in_w) {
      for (std::int64_t j = 0; j < last; j += lanes)
        spread_pairs(load(rows.grad + j), load_codes<C>(rows.argmax + j), even, even + 1, rows.to + 2 * j);
      spread_pairs(load(rows.grad + last), load_codes<C>(rows.argmax + last) | beyond, even, even + 1,
                   rows.to + 2 * last);
      if (odd_column) rows.to[in_w - 1] = T{};
    }
    rows.grad += rows.grad_step;
    rows.argmax += rows.argmax_step;
  }
}

// The same for two input rows and output rows of one vector at most, which is loaded once.
template <class T, class I>
__attribute__((noinline)) void spread_narrow_rows(PairRows<T> rows, I beyond) {
  using C = compute_t<T>;
  const std::int64_t in_w = rows.in_w;
  const I even = splat_code<C>(rows.code);
  for (std::int64_t oh = 0; oh < rows.count; ++oh) {
    const vec<C> g = load(rows.grad);
    const I a = load_codes<C>(rows.argmax) | beyond;
    spread_pairs(g, a, even, even + 1, rows.to);
    spread_pairs(g, a, even + 2, even + 3, rows.to + in_w);
    rows.to += 2 * in_w;
    rows.grad += rows.grad_step;
    rows.argmax += rows.argmax_step;
  }
}

template <class T>
struct PairSpread {
  const Params& p;
  const T* grad_end;
  const std::uint8_t* argmax_end;
  const T* grad_input_end;
  std::int64_t columns = vector_columns<T>(p), row_end = imax(2 * columns, p.in[2]);
  ivec<compute_t<T>> beyond = outside<compute_t<T>>(columns - kLanes<compute_t<T>>, p.out[2]);
  T *grad_stage = nullptr, *grad_input_stage = nullptr;
  std::uint8_t* argmax_stage = nullptr;

  void carve(Arena& arena) {
    grad_stage = arena.take<T>(columns);
    argmax_stage = arena.take<std::uint8_t>(columns);
    grad_input_stage = arena.take<T>((p.window.kernel[1] - 1) * p.in[2] + row_end);
  }

  // n output rows into the input rows from `to` on; `code` names the first of these and its even columns.
  void spread_rows(const T* g, const std::uint8_t* a, std::int64_t code, T* to, std::int64_t n) const {
    const PairRows<T> rows{g, a, p.output.s[1], p.argmax.s[1], n, to, p.in[2], code};
    if (p.window.kernel[1] == 2 && p.in[2] <= 2 * kLanes<compute_t<T>>)
      spread_narrow_rows(rows, beyond);
    else
      spread_pair_rows(rows, p.window.kernel[1], columns, beyond);
  }

  void spread_staged(const T* g, const std::uint8_t* a, std::int64_t code, T* to) const {
    std::memcpy(grad_stage, g, p.out[2] * sizeof(T));
    std::memcpy(argmax_stage, a, p.out[2]);
    spread_rows(grad_stage, argmax_stage, code, grad_input_stage, 1);
    std::memcpy(to, grad_input_stage, p.window.kernel[1] * p.in[2] * sizeof(T));
  }

  void spread_slab(const T* g, const std::uint8_t* a, std::int64_t code, T* to) const {
    const std::int64_t rows = p.out[1], in_w = p.in[2], k_h = p.window.kernel[1];
    std::int64_t oh = imin(rows_within(grad_end - g, columns, p.output.s[1], rows),
                           rows_within(argmax_end - a, columns, p.argmax.s[1], rows));
    oh = imin(oh, rows_within(grad_input_end - to, (k_h - 1) * in_w + row_end, k_h * in_w, rows));
    spread_rows(g, a, code, to, oh);
    for (; oh < rows; ++oh)
      spread_staged(g + oh * p.output.s[1], a + oh * p.argmax.s[1], code, to + oh * k_h * in_w);
    const std::int64_t left = (p.in[1] - rows * k_h) * in_w;
    if (left > 0) std::memset(to + rows * k_h * in_w, 0, left * sizeof(T));
  }
};

template <class T>
void backward_pairs_of(const Params& p, const T* grad_output, const std::uint8_t* argmax, T* grad_input) {
  const std::int64_t slab = p.in[1] * p.in[2], k_d = p.window.kernel[0];
  const bool join =
      p.in[0] == 1 && p.in[1] == p.out[1] * p.window.kernel[1] && planes_follow(p, p.output, p.out);
  parallel_for(p.n * p.c, planes_per_task(plane(p)), [&](std::int64_t begin, std::int64_t end) {
    const Params task = join ? tall_plane(p, end - begin) : p;
    PairSpread<T> pairs{task, grad_output + extent(p, p.output, p.out), argmax + extent(p, p.argmax, p.out),
                        grad_input + end * plane(p)};
    carve_scratch(Slot::local, [&](Arena& arena) { pairs.carve(arena); });
    each_plane_start(p, begin, join ? begin + 1 : end, [&](std::int64_t q, const PlaneStart& start) {
      T* to = grad_input + q * plane(p);
      for (std::int64_t od = 0; od < p.out[0]; ++od)
        for (std::int64_t td = 0; td < k_d; ++td, to += slab)
          pairs.spread_slab(grad_output + start.output + od * p.output.s[0],
                            argmax + start.argmax + od * p.argmax.s[0], td * p.window.kernel[1] * 2, to);
      const std::int64_t left = (p.in[0] - p.out[0] * k_d) * slab;
      if (left > 0) std::memset(to, 0, left * sizeof(T));
    });
  });
}

void backward_pairs(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto t) {
    using T = decltype(t);
    backward_pairs_of(p, static_cast<const T*>(grad_output), static_cast<const std::uint8_t*>(argmax),
                      static_cast<T*>(grad_input));
  });
}

}  // namespace
}  // namespace convnorm::max_pool
