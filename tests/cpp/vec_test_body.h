// Conversions of cpu/vec.h against definitions in double, for the instruction set that was chosen before this
// include. Every 16-bit value is widened; every gap between two neighbours is rounded at its middle and one
// float to each side.
#pragma once

namespace convnorm {
namespace {

std::uint32_t bits(float x) { return bits_as<std::uint32_t>(x); }
float value(std::uint32_t u) { return bits_as<float>(u); }
float up(float x) { return value(bits(x) + 1); }    // away from zero
float down(float x) { return value(bits(x) - 1); }  // towards zero

// The definitions.
double half_value(std::uint32_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}
bool half_is_nan(std::uint32_t h) { return (h & 0x7fff) > 0x7c00; }
bool bf16_is_nan(std::uint32_t h) { return (h & 0x7fff) > 0x7f80; }

template <class H>
struct Is16;
template <>
struct Is16<f16> {
  static constexpr const char* name = "f16";
  static bool nan(std::uint32_t h) { return half_is_nan(h); }
};
template <>
struct Is16<bf16> {
  static constexpr const char* name = "bf16";
  static bool nan(std::uint32_t h) { return bf16_is_nan(h); }
};

// Equal bits, or two NaN: which of them is not promised (F16C keeps the payload, the portable code does not).
template <class H>
bool same(H a, H b) {
  return a.bits == b.bits || (Is16<H>::nan(a.bits) && Is16<H>::nan(b.bits));
}

// By all three roads: a full vector, a partial one, a single element.
template <class H>
std::uint32_t narrowed(float x) {
  constexpr int L = kLanes<float>;
  H full[L], part[L], one;
  store(full, splat<float>(x));
  for (H& h : part) h.bits = 0xabcd;
  store_n(part, splat<float>(x), 1);
  store1(&one, x);
  for (int i = 1; i < L; ++i)
    EXPECT(same(full[i], full[0]) && part[i].bits == 0xabcd, "%s %g lane %d", Is16<H>::name, x, i);
  EXPECT(same(part[0], full[0]) && same(one, full[0]), "%s %g: %x %x %x", Is16<H>::name, x, full[0].bits,
         part[0].bits, one.bits);
  return full[0].bits;
}

template <class H>
float widened(std::uint32_t h) {
  constexpr int L = kLanes<float>;
  H lanes[L];
  for (H& lane : lanes) lane.bits = static_cast<std::uint16_t>(h);
  const vec<float> full = load(lanes);
  const vec<float> part = load_n(lanes, L - 1);
  const float one = load1(lanes);
  const bool same = bits(full[0]) == bits(full[L - 1]) && bits(full[0]) == bits(part[0]) && part[L - 1] == 0;
  const bool single = bits(one) == bits(full[0]) || (one != one && full[0] != full[0]);
  EXPECT(same && single, "%s %x widens to %g, %g, %g", Is16<H>::name, h, full[0], part[0], one);
  return full[0];
}

void check_bf16() {
  const std::uint32_t kLow[] = {0, 1, 0x7fff, 0x8000, 0xffff};
  for (std::uint32_t h = 0; h < 65536; ++h) {
    const float x = widened<bf16>(h);
    EXPECT(bits(x) == h << 16, "bf16 %x", h);
    if (bf16_is_nan(h)) {
      for (std::uint32_t low : kLow)
        EXPECT(bf16_is_nan(narrowed<bf16>(value(h << 16 | low))), "bf16 NaN %x | %x", h, low);
      continue;
    }
    EXPECT(narrowed<bf16>(x) == h, "bf16 %x back", h);
    if ((h & 0x7fff) == 0x7f80) continue;  // infinity has no neighbour
    const std::uint32_t middle = h << 16 | 0x8000;
    EXPECT(narrowed<bf16>(value(middle - 1)) == h, "bf16 %x below the middle", h);
    EXPECT(narrowed<bf16>(value(middle)) == h + (h & 1), "bf16 %x tie to even", h);
    EXPECT(narrowed<bf16>(value(middle + 1)) == h + 1, "bf16 %x above the middle", h);
  }
}

void check_f16() {
  for (std::uint32_t h = 0; h < 65536; ++h) {
    const float x = widened<f16>(h);
    if (half_is_nan(h)) {
      EXPECT(x != x && half_is_nan(narrowed<f16>(x)), "f16 NaN %x", h);
      continue;
    }
    EXPECT(std::signbit(x) == (h >> 15 == 1) && narrowed<f16>(x) == h, "f16 %x back from %g", h, x);
    if ((h & 0x7fff) == 0x7c00) {
      EXPECT(std::isinf(x), "f16 %x", h);
      continue;
    }
    EXPECT(x == half_value(h), "f16 %x is %g", h, x);
    // The neighbour of the largest value is 2^16, which is infinity in this type; the rule for the middle is
    // the same.
    const double next = half_value((h & 0x8000) | ((h & 0x7fff) + 1));
    const float middle = static_cast<float>((half_value(h) + next) / 2);
    EXPECT(narrowed<f16>(down(middle)) == h, "f16 %x below the middle", h);
    EXPECT(narrowed<f16>(middle) == h + (h & 1), "f16 %x tie to even", h);
    EXPECT(narrowed<f16>(up(middle)) == h + 1, "f16 %x above the middle", h);
  }
  const float huge[] = {1e5f, 3e38f, HUGE_VALF}, tiny[] = {1e-8f, 1e-40f};
  for (float x : huge) EXPECT(narrowed<f16>(x) == 0x7c00 && narrowed<f16>(-x) == 0xfc00, "f16 of %g", x);
  for (float x : tiny) EXPECT(narrowed<f16>(x) == 0 && narrowed<f16>(-x) == 0x8000, "f16 of %g", x);
}

template <class C>
void check_arithmetic() {
  constexpr int L = kLanes<C>;
  C a[L], b[L];
  C sum = 0;
  for (int i = 0; i < L; ++i) {
    a[i] = static_cast<C>(i - 3);
    b[i] = static_cast<C>(5 - 2 * i);
    sum += a[i];
  }
  const vec<C> high = vmax<vec<C>>(load(a), load(b)), low = vmin<vec<C>>(load(a), load(b));
  for (int i = 0; i < L; ++i)
    EXPECT(high[i] == std::fmax(a[i], b[i]) && low[i] == std::fmin(a[i], b[i]), "lane %d", i);
  EXPECT(lane_sum<C>(load(a)) == sum, "lane_sum %g, must be %g", double(lane_sum<C>(load(a))), double(sum));
  for (int n = 0; n <= L; ++n) {
    C out[L];
    for (C& x : out) x = 77;
    store_n(out, load_n(a, n), n);
    const vec<C> part = load_n(a, n);
    for (int i = 0; i < L; ++i) {
      EXPECT(out[i] == (i < n ? a[i] : C(77)), "store_n %d lane %d", n, i);
      EXPECT(part[i] == (i < n ? a[i] : C(0)), "load_n %d lane %d", n, i);
    }
  }
}

void check_vec() {
  check_bf16();
  check_f16();
  check_arithmetic<float>();
  check_arithmetic<double>();
}

}  // namespace
}  // namespace convnorm
