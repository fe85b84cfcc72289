// Rows of an image as the inner loops need them: packed in the compute type, split by the stride; and rows of
// several output phases put together again. Include after cpu/vec.h.
#pragma once

namespace convnorm::conv {
namespace {

// Packed column p lies in run p % step, so that the columns that a tap reads are consecutive whatever the
// stride.
struct PackedRow {
  std::int64_t step, run_pitch;
  std::int64_t pitch() const { return step * run_pitch; }
  std::int64_t at(std::int64_t p) const { return p % step * run_pitch + p / step; }
};

// Rows to copy: n columns each, `stride` elements apart, to packed columns from `first` on. Vectors may be
// read up to `end`, beyond the row; of what is packed nothing is written before the columns, and only zeros
// behind them.
template <class S>
struct Rows {
  const S *from, *end;
  std::int64_t rows, row_stride, n, stride, first;
};

template <class S, class C>
void copy_rows(const Rows<S>& x, C* to, std::int64_t pitch) {
  constexpr int L = kLanes<C>;
  const S* from = x.from;
  const std::int64_t n = x.n, row_stride = x.row_stride;
  std::int64_t r = 0;
  if (n > 2 * L) {
    for (; r < x.rows; ++r, from += row_stride, to += pitch) {
      for (std::int64_t i = 0; i < n - L; i += L) store(to + i, load(from + i));
      store(to + n - L, load(from + n - L));
    }
  } else if (n >= L) {
    for (; r < x.rows; ++r, from += row_stride, to += pitch) {
      store(to, load(from));
      store(to + n - L, load(from + n - L));
    }
  } else {
    const ivec<C> lanes = lanes_below<C>(n);
    for (; r < x.rows && from + L <= x.end; ++r, from += row_stride, to += pitch)
      store(to, only<C>(load(from), lanes));
    for (; r < x.rows; ++r, from += row_stride, to += pitch)
      for (std::int64_t i = 0; i < n; ++i) to[i] = load1(from + i);
  }
}

// Columns with an even number to `even`, the others to `odd`.
template <class S, class C>
inline void split_row(const S* from, std::int64_t n, const S* end, ivec<C> low, ivec<C> high, C* even,
                      C* odd) {
  constexpr int L = kLanes<C>;
  const auto put = [&](vec<C> a, vec<C> b, std::int64_t i) {
    store(even + i / 2, even_lanes(a, b, kEachLane<C>));
    store(odd + i / 2, odd_lanes(a, b, kEachLane<C>));
  };
  if (n >= 2 * L) {
    const std::int64_t last = n / 2 * 2 - 2 * L;
    for (std::int64_t i = 0; i < last; i += 2 * L) put(load(from + i), load(from + i + L), i);
    put(load(from + last), load(from + last + L), last);
    if (n & 1) even[n / 2] = load1(from + n - 1);
  } else if (from + 2 * L <= end) {
    put(only<C>(load(from), low), only<C>(load(from + L), high), 0);
  } else {
    for (std::int64_t i = 0; i < n; i += 2) even[i / 2] = load1(from + i);
    for (std::int64_t i = 1; i < n; i += 2) odd[i / 2] = load1(from + i);
  }
}

template <class S, class C>
void pack_rows(const Rows<S>& x, C* to, const PackedRow& shape) {
  const S* from = x.from;
  C* const even = to + shape.at(x.first);
  if (x.stride == 1 && shape.step == 1) {
    copy_rows(x, even, shape.pitch());
  } else if (x.stride == 1 && shape.step == 2) {
    const ivec<C> low = lanes_below<C>(x.n), high = lanes_below<C>(x.n - kLanes<C>);
    C* const odd = to + shape.at(x.first + 1);
    for (std::int64_t r = 0; r < x.rows; ++r, from += x.row_stride)
      split_row(from, x.n, x.end, low, high, even + r * shape.pitch(), odd + r * shape.pitch());
  } else {
    for (std::int64_t r = 0; r < x.rows; ++r, from += x.row_stride, to += shape.pitch()) {
      std::int64_t run = x.first % shape.step, slot = x.first / shape.step;
      for (std::int64_t i = 0; i < x.n; ++i) {
        to[run * shape.run_pitch + slot] = load1(from + i * x.stride);
        if (++run == shape.step) run = 0, ++slot;
      }
    }
  }
}

template <class C>
inline void clear(C* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes<C>) store(to + i, vec<C>{});
}

// n values to elements `stride` apart.
template <class C, class D>
inline void write_out(const C* row, std::int64_t n, D* to, std::int64_t stride) {
  constexpr int L = kLanes<C>;
  if (stride == 1 && n >= L) {
    for (std::int64_t i = 0; i < n; i += L) {
      const std::int64_t at = imin(i, n - L);
      store(to + at, load(row + at));
    }
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) store1(to + i * stride, row[i]);
}

// Phases a and b, n outputs in all, in turns: a0 b0 a1 b1 ...; `row` has room for two vectors more than n.
template <class C, class D>
inline void write_phases(const C* a, const C* b, std::int64_t n, C* row, D* to) {
  constexpr int L = kLanes<C>;
  const auto put = [&](auto* at, std::int64_t i) {
    const vec<C> x = load(a + i / 2), y = load(b + i / 2);
    store(at + i, interleave_low(x, y, kEachLane<C>));
    store(at + i + L, interleave_high(x, y, kEachLane<C>));
  };
  if (n < 2 * L) {
    put(row, 0);
    return write_out(row, n, to, 1);
  }
  const std::int64_t last = n / 2 * 2 - 2 * L;
  for (std::int64_t i = 0; i < last; i += 2 * L) put(to, i);
  put(to, last);
  if (n & 1) store1(to + n - 1, a[n / 2]);
}

}  // namespace
}  // namespace convnorm::conv
