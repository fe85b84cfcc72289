// Statistics by blocks (Welford 1962; Chan, Golub, LeVeque 1979). Include below a cpu/target_*.h, after
// vec.h.
//
// A block of n values is summed about a shift m that is a float near the mean: d = x - m, s1 = sum d, s2 =
// sum d^2. Then mean_b = m + s1/n and M2_b = s2 - s1^2/n, and blocks are merged in double:
//   delta = mean_b - mean;  mean += delta n_b/n;  M2 += M2_b + delta^2 n_a n_b/n.
// With m the mean of all blocks before (the start of the first block is swept once more, for its own mean),
// the rounding error of s2 is a small multiple of eps * n_b (mean_b - m)^2 + eps * M2_b, and M2 grows by at
// least as much in that merge: the relative error stays near eps whatever the mean, the order of the data or
// the layout. Constants give exactly zero.
//
// Squares of huge or tiny floats leave float's range; a block whose s2 does is swept again in double.
#pragma once

namespace convnorm {
namespace {

struct Moments {
  double count = 0, mean = 0, m2 = 0;
};

inline void merge(Moments& into, const Moments& block) {
  if (block.count == 0) return;
  const double count = into.count + block.count;
  const double delta = block.mean - into.mean;
  into.mean = into.count == 0 ? block.mean : into.mean + delta * (block.count / count);
  into.m2 += block.m2 + (into.count == 0 ? 0 : delta * delta * (into.count * block.count / count));
  into.count = count;
}

inline Moments moments(double count, double shift, double s1, double s2) {
  const double m2 = s2 - s1 * s1 / count;
  return {count, shift + s1 / count, m2 < 0 ? 0.0 : m2};  // NaN stays NaN
}

// Sums of squares between these bounds have lost nothing to float's range.
inline bool in_range(float s2) { return s2 > 1e-30f && s2 < 1e36f; }
inline bool in_range(double) { return true; }
inline ivec<float> in_range(vec<float> s2) { return (s2 > 1e-30f) & (s2 < 1e36f); }
inline ivec<double> in_range(vec<double>) { return ivec<double>{} - 1; }

inline bool is_finite(double x) { return x - x == 0; }

// As many doubles as a vector of C has lanes, in registers of their own (one vector type of twice the
// register size is kept in memory by gcc 12).
template <class C>
struct Wide {
  static constexpr int kParts = sizeof(double) / sizeof(C);
  vec<double> part[kParts];
};

inline Wide<double> widen(vec<double> v) { return {{v}}; }
inline Wide<float> widen(vec<float> v) {
#if CONVNORM_VECTOR_BYTES == 64
  const __m512 m = bits_as<__m512>(v);
  return {{bits_as<vec<double>>(_mm512_cvtps_pd(_mm512_castps512_ps256(m))),
           bits_as<vec<double>>(_mm512_cvtps_pd(_mm512_extractf32x8_ps(m, 1)))}};
#elif CONVNORM_VECTOR_BYTES == 32
  const __m256 m = bits_as<__m256>(v);
  return {{bits_as<vec<double>>(_mm256_cvtps_pd(_mm256_castps256_ps128(m))),
           bits_as<vec<double>>(_mm256_cvtps_pd(_mm256_extractf128_ps(m, 1)))}};
#else
  return {{vec<double>{v[0], v[1]}, vec<double>{v[2], v[3]}}};
#endif
}

template <int... i, class V>
inline __attribute__((always_inline)) auto upper_onto_lower(const V& v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, i...) + __builtin_shufflevector(v, v, (i + int(sizeof...(i)))...);
}

// Sum of n lanes, halves folded onto each other. In registers: through memory it took as long as a short row.
template <int n, class A, class V>
inline __attribute__((always_inline)) A fold(const V& v) {
  if constexpr (n == 2)
    return v[0] + v[1];
  else if constexpr (n == 4)
    return (v[0] + v[2]) + (v[1] + v[3]);
  else
    return fold<n / 2, A>(upper_onto_lower(v, std::make_integer_sequence<int, n / 2>{}));
}

// Two sums over vectors, lane by lane: g, and g d, of which the second is a small difference of large terms.
// Of floats the caller adds up to kTerms vectors first, and the rest is in double; doubles carry the rounding
// of every addition along (Knuth's two-sum).
template <class C>
struct PairSums {
  static constexpr int kTerms = 4;
  Wide<C> g, dot;

  PairSums() { clear(); }
  void clear() {  // part by part: gcc clears whole arrays with rep stos, which takes 40 cycles to start
    for (int i = 0; i < Wide<C>::kParts; ++i) g.part[i] = dot.part[i] = vec<double>{};
  }
  void add(vec<C> g4, vec<C> dot4) {
    const Wide<C> gw = widen(g4), dw = widen(dot4);
    for (int i = 0; i < Wide<C>::kParts; ++i) g.part[i] += gw.part[i], dot.part[i] += dw.part[i];
  }
  double g_lane(int i) const { return g.part[i / kLanes<double>][i % kLanes<double>]; }
  double dot_lane(int i) const { return dot.part[i / kLanes<double>][i % kLanes<double>]; }
  void add_to(double* g_to, double* dot_to) const {
    for (int i = 0; i < Wide<C>::kParts; ++i, g_to += kLanes<double>, dot_to += kLanes<double>) {
      store(g_to, load(g_to) + g.part[i]);
      store(dot_to, load(dot_to) + dot.part[i]);
    }
  }
  double g_sum() const { return sum(g); }
  double dot_sum() const { return sum(dot); }

 private:
  static double sum(const Wide<C>& w) {
    return fold<kLanes<double>, double>(w.part[0] + w.part[Wide<C>::kParts - 1]);
  }
};

template <>
struct PairSums<double> {
  static constexpr int kTerms = 1;
  typedef vec<double> V;
  V g, g_low, dot, dot_low;

  PairSums() { clear(); }
  void clear() { g = g_low = dot = dot_low = V{}; }
  static void add(V& high, V& low, V term) {
    const V sum = high + term, back = sum - high;
    low += (high - (sum - back)) + (term - back);
    high = sum;
  }
  void add(V g4, V dot4) {
    add(g, g_low, g4);
    add(dot, dot_low, dot4);
  }
  // An overflow leaves NaN in low and the answer in high.
  static double total(double high, double low) { return low == low ? high + low : high; }
  double g_lane(int i) const { return total(g[i], g_low[i]); }
  double dot_lane(int i) const { return total(dot[i], dot_low[i]); }
  void add_to(double* g_to, double* dot_to) const {
    for (int i = 0; i < kLanes<double>; ++i) g_to[i] += g_lane(i), dot_to[i] += dot_lane(i);
  }
  double g_sum() const { return sum(g, g_low); }
  double dot_sum() const { return sum(dot, dot_low); }

 private:
  static double sum(V high, V low) {
    double all = 0;
    for (int i = 0; i < kLanes<double>; ++i) all += total(high[i], low[i]);
    return all;
  }
};

// Vector accumulators of one block, several of them so that additions overlap. A is float, or double for the
// sweep that cannot leave the range; both have as many lanes as a vector of C.
template <class C, class A>
struct BlockSums {
  static constexpr int kWays = 4;
  typedef A V __attribute__((vector_size(kLanes<C> * sizeof(A))));
  V s1[kWays], s2[kWays];
  V shift;

  explicit BlockSums(double m) : shift(V{} + static_cast<A>(m)) {
    for (int way = 0; way < kWays; ++way) s1[way] = s2[way] = V{};
  }

  inline void add(int way, vec<C> x, ivec<C> on) {
    V d = __builtin_convertvector(x, V) - shift;
    d = only(d, on);
    s1[way % kWays] += d;
    s2[way % kWays] += d * d;
  }
  double total(const V (&s)[kWays]) const { return fold<kLanes<C>, A>((s[0] + s[1]) + (s[2] + s[3])); }

 private:
  static inline V only(V d, ivec<C> on) {
    typedef decltype(d < d) M;
    return __builtin_convertvector(on, M) ? d : V{};
  }
};

}  // namespace
}  // namespace convnorm
