// Weights of 3x3 windows, 9 taps of one channel after the other, dealt to a row of 32 channels per tap, and
// back: 288 elements, 9 vectors, each of which has some of every other.
//
// One by one they take a cycle each, a third of a layer's time where pixels are few; by permutations of two
// vectors at a time 0.4.
//
// Include after cpu/vec.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr int kDealt = 9;

class Shuffle {
 public:
  // Element e of the result is element source(e).
  template <class Source>
  explicit Shuffle(Source source) {
    for (int e = 0; e < kDealt * 32; ++e) {
      const int from = source(e), pair = from / 64;
      from_[e / 32][pair][e % 32] = static_cast<std::uint16_t>(from % 64);
      lanes_[e / 32][pair] |= __mmask32{1} << e % 32;
    }
  }

  void operator()(const __m512i (&in)[kDealt], __m512i (&out)[kDealt]) const {
    for (int i = 0; i < kDealt; ++i) {
      __m512i all = _mm512_setzero_si512();
      for (int pair = 0; pair < kPairs; ++pair) {
        const __m512i high = 2 * pair + 1 < kDealt ? in[2 * pair + 1] : _mm512_setzero_si512();
        all = _mm512_or_si512(all, _mm512_maskz_permutex2var_epi16(lanes_[i][pair], in[2 * pair],
                                                                   _mm512_load_si512(from_[i][pair]), high));
      }
      out[i] = all;
    }
  }

 private:
  static constexpr int kPairs = (kDealt + 1) / 2;
  alignas(64) std::uint16_t from_[kDealt][kPairs][32] = {};
  __mmask32 lanes_[kDealt][kPairs] = {};
};

inline const Shuffle& to_taps() {
  static const Shuffle shuffle([](int e) { return e % 32 * kDealt + e / 32; });
  return shuffle;
}
inline const Shuffle& from_taps() {
  static const Shuffle shuffle([](int e) { return e % kDealt * 32 + e / kDealt; });
  return shuffle;
}

}  // namespace
}  // namespace convnorm::conv
