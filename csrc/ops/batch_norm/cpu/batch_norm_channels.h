// Per-channel arithmetic of batch norm: coefficients from statistics and sums, in double, a vector of
// channels at a time. With thousands of channels, scalar roots and divisions would take as long as the
// elements.
//
//   y      = (x - center) scale + shift           grad_x = slope ((g - level) - (x - center) along)
//
// center is the mean rounded to C. What the rounding cut off, low = mean - center, is in shift and level:
// xhat = (x - center - low) r, so along = r grad_weight / M and level = grad_bias / M - low along.
#pragma once

namespace convnorm::batch_norm {
namespace {

using Doubles = vec<double>;

// As many values of C as a vector has doubles.
template <class C>
using Few = typename Vec<C, kLanes<double>>::V;

template <class C>
inline Doubles load_doubles(const C* p) {
  Few<C> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, Doubles);
}

// Returns what was stored, after rounding to C.
template <class C>
inline Doubles store_doubles(C* p, Doubles v) {
  const auto rounded = __builtin_convertvector(v, Few<C>);
  __builtin_memcpy(p, &rounded, sizeof(rounded));
  return __builtin_convertvector(rounded, Doubles);
}

// n channels from p, which may end there.
inline Doubles load_channels(const double* p, std::int64_t n) {
  return n == kLanes<double> ? load(p) : load_n(p, n);
}
inline void store_channels(double* p, Doubles v, std::int64_t n) {
  n == kLanes<double> ? store(p, v) : store_n(p, v, n);
}

// f(i, n): n channels from i, at most a vector of them.
template <class F>
CONVNORM_INLINE inline void each_channels(std::int64_t count, F f) {
  constexpr std::int64_t L = kLanes<double>;
  for (std::int64_t i = 0; i < count; i += L) f(i, imin(L, count - i));
}

// Tables of coefficients, kMost channels each, whose arrays lie a fixed distance apart: one pointer serves
// all.
template <class C>
struct Coefficients {
  static constexpr std::int64_t kMost = 512;
  static constexpr std::int64_t kPitch =
      kMost + 64 / sizeof(C);  // arrays a page apart would share sets of L1
  static constexpr std::int64_t kTable = 6 * kPitch;
  C* at;

  static std::int64_t bytes(std::int64_t tables) {
    return tables * kTable * static_cast<std::int64_t>(sizeof(C));
  }
  Coefficients(Arena& arena, std::int64_t tables) : at(arena.take<C>(tables * kTable)) {}
  explicit Coefficients(C* p) : at(p) {}

  C* center() const { return at; }
  C* scale() const { return at + kPitch; }
  C* shift() const { return at + 2 * kPitch; }
  C* slope() const { return at + 3 * kPitch; }
  C* along() const { return at + 4 * kPitch; }
  C* level() const { return at + 5 * kPitch; }
  // The first `arrays`, of `count` channels, again and again, for `times` rows side by side.
  void repeat(int arrays, std::int64_t count, std::int64_t times) const {
    for (C* array = at; array < at + arrays * kPitch; array += kPitch)
      for (std::int64_t i = 1; i < times; ++i) std::memcpy(array + i * count, array, count * sizeof(C));
  }
  Coefficients table(std::int64_t i) const { return Coefficients(at + i * kTable); }
  Coefficients channel(std::int64_t c) const { return Coefficients(at + c / kMost * kTable + c % kMost); }
};

template <class P>
inline Doubles inverse_deviation(const P& p, std::int64_t c, std::int64_t n) {
  return 1.0 / vsqrt(load_channels(p.var + c, n) + p.eps);
}

// center, scale and shift of `count` channels from `first`, into one table.
template <class C, class P>
inline void forward_coefficients(const P& p, std::int64_t first, std::int64_t count,
                                 const Coefficients<C>& k) {
  each_channels(count, [&](std::int64_t i, std::int64_t n) CONVNORM_INLINE {
    const std::int64_t c = first + i;
    Doubles scale = inverse_deviation(p, c, n);
    if (p.weight) scale *= load_channels(p.weight + c, n);
    const Doubles mean = load_channels(p.mean + c, n), low = mean - store_doubles(k.center() + i, mean);
    store_doubles(k.scale() + i, scale);
    store_doubles(k.shift() + i, (p.bias ? load_channels(p.bias + c, n) : Doubles{}) - low * scale);
  });
}

// The same for all channels, into one table after the other.
template <class C, class P>
inline void all_forward_coefficients(const P& p, std::int64_t channels, const Coefficients<C>& k) {
  constexpr std::int64_t kMost = Coefficients<C>::kMost;
  for (std::int64_t c = 0; c < channels; c += kMost)
    forward_coefficients(p, c, imin(kMost, channels - c), k.channel(c));
}

// grad_weight = sum g xhat where grad_weight held sum g (x - center).
template <class C>
inline void weight_gradients(const Backward& p, std::int64_t first, std::int64_t count,
                             const Coefficients<C>& k) {
  each_channels(count, [&](std::int64_t i, std::int64_t n) CONVNORM_INLINE {
    const std::int64_t c = first + i;
    const Doubles low = load_channels(p.mean + c, n) - load_doubles(k.center() + i);
    const Doubles dot = load_channels(p.grad_weight + c, n) - low * load_channels(p.grad_bias + c, n);
    store_channels(p.grad_weight + c, dot * inverse_deviation(p, c, n), n);
  });
}

// slope, along and level, after forward_coefficients and weight_gradients.
template <class C>
inline void backward_coefficients(const Backward& p, std::int64_t first, std::int64_t count,
                                  const Coefficients<C>& k) {
  const double share = p.train ? 1 / static_cast<double>(p.x.values()) : 0;
  each_channels(count, [&](std::int64_t i, std::int64_t n) CONVNORM_INLINE {
    const std::int64_t c = first + i;
    const Doubles r = inverse_deviation(p, c, n);
    const Doubles low = load_channels(p.mean + c, n) - load_doubles(k.center() + i);
    Doubles along{}, level{};
    if (p.train) {
      along = r * share * load_channels(p.grad_weight + c, n);
      level = share * load_channels(p.grad_bias + c, n) - low * along;
    }
    store_doubles(k.slope() + i, p.weight ? r * load_channels(p.weight + c, n) : r);
    store_doubles(k.along() + i, along);
    store_doubles(k.level() + i, level);
  });
}

}  // namespace
}  // namespace convnorm::batch_norm
