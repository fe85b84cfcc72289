// By weight: sums of the bias, and those of the splits, which are added in order and written where the
// weights lie.
//
// Include after conv_igemm_pack_weights.h.
#pragma once

namespace convnorm::conv {
namespace {

// The partial sums of one (group) and how the splits lie: element i is the sum over s of at[i + s *
// distance], in order.
template <class C>
struct Parts {
  const C* at;
  std::int64_t splits, distance;
  C one(std::int64_t i) const {
    C sum = at[i];
    for (std::int64_t s = 1; s < splits; ++s) sum += at[i + s * distance];
    return sum;
  }
  vec<C> several(std::int64_t i) const {
    vec<C> sum = load(at + i);
    for (std::int64_t s = 1; s < splits; ++s) sum += load(at + i + s * distance);
    return sum;
  }
};

// out[k * out_stride + r] = parts[r * ld + k] for k < lanes, r < n: squares turned in registers.
template <class C, class D>
void write_turned(const Parts<C>& parts, std::int64_t from, std::int64_t ld, std::int64_t lanes,
                  std::int64_t n, D* out, std::int64_t out_stride) {
  constexpr int L = kLanes<C>;
  for (std::int64_t k = 0; k < lanes; k += L) {
    std::int64_t r = 0;
    for (; r + L <= n; r += L) {
      vec<C> square[L];
      for (int i = 0; i < L; ++i) square[i] = parts.several(from + (r + i) * ld + k);
      transpose<C>(square);
      for (std::int64_t i = 0; i < imin(L, lanes - k); ++i) store(out + (k + i) * out_stride + r, square[i]);
    }
    for (; r < n; ++r)
      for (std::int64_t i = 0; i < imin(L, lanes - k); ++i)
        store1(out + (k + i) * out_stride + r, parts.one(from + r * ld + k + i));
  }
}

// n elements of a row of the partial sums to elements `step` apart.
template <class C, class D>
void write_row(const Parts<C>& parts, std::int64_t from, std::int64_t n, D* out, std::int64_t step) {
  std::int64_t i = 0;
  if (step == 1)
    for (; i + kLanes<C> <= n; i += kLanes<C>) store(out + i, parts.several(from + i));
  for (; i < n; ++i) store1(out + i * step, parts.one(from + i));
}

// Sums of the first `lanes` columns of panel[pixels][width]: four short sums per lane, joined in double.
// `slack`: the last vector may be read whole; by elements it takes several times as long.
template <class C>
void add_bias_sums(const C* panel, std::int64_t pixels, std::int64_t lanes, std::int64_t width, bool slack,
                   double* sums) {
  constexpr int L = kLanes<C>, kParts = 4;
  for (std::int64_t v = 0; v < lanes; v += L) {
    const std::int64_t n = imin(L, lanes - v);
    const auto get = [&](std::int64_t x) {
      const C* at = panel + x * width + v;
      return n == L || slack ? load(at) : load_n(at, n);
    };
    vec<C> part[kParts];
    for (int i = 0; i < kParts; ++i) part[i] = vec<C>{};
    std::int64_t x = 0;
    for (; x + kParts <= pixels; x += kParts)
      for (int i = 0; i < kParts; ++i) part[i] += get(x + i);
    for (; x < pixels; ++x) part[0] += get(x);
    for (std::int64_t o = 0; o < n; ++o)
      for (int i = 0; i < kParts; ++i) sums[v + o] += double(part[i][o]);
  }
}

// grad_bias [k0, k1) of all groups: the sums of the splits in order.
template <class D>
void write_bias(const Dense& d, const double* sums, std::int64_t splits, std::int64_t k0, std::int64_t k1) {
  const std::int64_t all_out = d.groups * d.out_c;
  for (std::int64_t k = k0; k < k1; ++k) {
    double sum = 0;
    for (std::int64_t s = 0; s < splits; ++s) sum += sums[s * all_out + k];
    store1(static_cast<D*>(d.bias) + k, compute_t<D>(sum));
  }
}

}  // namespace
}  // namespace convnorm::conv
