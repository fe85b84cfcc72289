// The two inner loops of depthwise convolution. Nothing is summed over channels, so every lane of a vector
// has outputs of its own: neighbouring columns in NCHW (conv_depthwise_planes.h), channels in NHWC
// (conv_depthwise_channels.h).
//
//   slide (forward, by input)   out[r] += sum over lines l, k of w[l][k] * x[l][r * S + k],   r < kOut
//
// A line is K taps that lie next to each other along the sliding axis: h in NCHW, w in NHWC. Its weights stay
// in registers while source vectors pass; each is loaded once for up to K FMAs. 7 outputs + 7 weights + 1
// source fill 16 registers and nearly cover the latency of FMAs, and 7 divides the extents of the usual
// planes. K = 1 takes any geometry: each tap is a line, each source vector is loaded for each tap.
//
//   weigh (by weight)           sums[t][k] += sum over places p of gout[p] * x[t][p * step + k]
//
// T lines together: T * K sums stay in registers for about kPlaces places; then they are added to memory, so
// that no chain of FMAs is longer. The sums are few and the places many: a source vector is an operand of its
// FMA, not reused.
//
// Include after cpu/vec.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr int kOut = 7;

// All ones in lanes below n.
template <class C, int... lane>
inline ivec<C> lanes_below(std::int64_t n, std::integer_sequence<int, lane...>) {
  typedef std::remove_reference_t<decltype(ivec<C>{}[0])> Lane;
  return ivec<C>{lane...} < ivec<C>{} + static_cast<Lane>(imin(imax(n, 0), kLanes<C>));
}
template <class C>
inline ivec<C> lanes_below(std::int64_t n) {
  return lanes_below<C>(n, std::make_integer_sequence<int, kLanes<C>>{});
}
template <class C>
inline vec<C> only(vec<C> x, ivec<C> lanes) {
  return bits_as<vec<C>>(bits_as<ivec<C>>(x) & lanes);
}

// Source vectors that kOut outputs read of a line.
template <int K, int S>
inline constexpr int kReach = (kOut - 1) * S + K;

// Vector i of a line is at source + i * pitch; those outside [begin, end) are padding. The weight of tap k is
// number `weight` + k.
struct Line {
  std::int64_t source, weight;
  std::int64_t column;  // of the first tap, from that of the first output's window
  std::int64_t begin, end;
};

// acc[r] += the lines' products; weight(i) is weight i as a vector. Without kEdges nothing is padding.
template <int K, int S, bool kEdges, class C, class X, class W>
inline __attribute__((always_inline)) void slide(vec<C> (&acc)[kOut], const Line* line, std::int64_t lines,
                                                 const X* source, std::int64_t pitch, const W& weight) {
  for (std::int64_t l = 0; l < lines; ++l) {
    vec<C> w[K];
    for (int k = 0; k < K; ++k) w[k] = weight(line[l].weight + k);
    const X* at = source + line[l].source;
    const std::int64_t begin = kEdges ? line[l].begin : 0, end = kEdges ? line[l].end : 0;
#pragma GCC unroll 32
    for (int i = 0; i < kReach<K, S>; ++i, at += pitch) {
      if (kEdges && (i < begin || i >= end)) continue;
      const vec<C> x = load(at);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k)
        if (i >= k && (i - k) % S == 0 && (i - k) / S < kOut) acc[(i - k) / S] += w[k] * x;
    }
  }
}

// Outputs on their way to be finished: a copy, so that those in registers have no address.
template <class C>
struct OutRows {
  vec<C> row[kOut];
};
template <class C>
inline OutRows<C> copy_rows(const vec<C> (&acc)[kOut]) {
  OutRows<C> rows;
  for (int r = 0; r < kOut; ++r) rows.row[r] = acc[r];
  return rows;
}

// --- by weight
// ----------------------------------------------------------------------------------------------

inline constexpr std::int64_t kPlaces = 64;

// A run of places whose windows reach equally far into the image: bit t * K + k of taps for tap k of line t.
struct Piece {
  std::int64_t gout, source, count;
  std::uint32_t taps;
};

// The bits of n taps.
inline constexpr std::uint32_t all_taps(int n) { return (1u << n) - 1; }

template <class C, class X>
struct Weigh {
  const Piece* piece;
  std::int64_t pieces;
  const std::int64_t* line;  // where each line's tap 0 lies from a place's source
  const X *gout, *source;
  std::int64_t gout_step, source_step;  // from place to place
  std::int64_t pitch;                   // from tap to tap of a line
  ivec<C> lanes;                        // kPartial: all ones where a lane counts
  C* sums;                              // T * K vectors
};

// The places of one piece. kMasked: only the taps inside the image. kPartial: lanes that do not count are
// cleared in the source, where a NaN may be; in gout they are zero.
template <int K, int T, bool kPartial, bool kMasked, class C, class X>
inline __attribute__((always_inline)) void add_places(vec<C> (&acc)[T][K], const Weigh<C, X>& job,
                                                      const Piece& p, ivec<C> lanes) {
  const std::int64_t pitch = job.pitch, gout_step = job.gout_step, source_step = job.source_step;
  const X* g_at = job.gout + p.gout;
  const X* at[T];
  for (int t = 0; t < T; ++t) at[t] = job.source + p.source + job.line[t];
  const std::uint32_t taps = p.taps;
  for (std::int64_t i = p.count; i > 0; --i, g_at += gout_step) {
    const vec<C> g = load(g_at);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) {
        if (kMasked && !(taps >> (t * K + k) & 1)) continue;
        vec<C> x = load(at[t] + k * pitch);
        if constexpr (kPartial) x = only<C>(x, lanes);
        acc[t][k] += g * x;
      }
      at[t] += source_step;
    }
  }
}

template <int K, int T, bool kPartial, class C, class X>
void weigh(const Weigh<C, X>& job) {
  const ivec<C> lanes = job.lanes;
  for (const Piece *p = job.piece, *last = p + job.pieces; p < last;) {
    vec<C> acc[T][K];
    for (int t = 0; t < T; ++t)
      for (int k = 0; k < K; ++k) acc[t][k] = vec<C>{};
    for (std::int64_t places = 0; places < kPlaces && p < last; ++p) {
      places += p->count;
      if (kPartial || p->taps == all_taps(K * T))
        add_places<K, T, kPartial, false>(acc, job, *p, lanes);
      else
        add_places<K, T, false, true>(acc, job, *p, lanes);
    }
    for (int t = 0; t < T; ++t)
      for (int k = 0; k < K; ++k) {
        C* to = job.sums + (t * K + k) * kLanes<C>;
        store(to, load(to) + acc[t][k]);
      }
  }
}

}  // namespace
}  // namespace convnorm::conv
