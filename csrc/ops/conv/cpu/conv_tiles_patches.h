// Few channels: the terms of a window one after the other, for each output of a slab.
//
// All channels of neighbouring taps are a run. Rows of the image are staged first, channels innermost and
// with their padding, so that runs need no care for edges: each is copied in whole vectors, and what is too
// much is overwritten by the next.
//
// Include after conv_tiles_pack.h.
#pragma once

namespace convnorm::conv {
namespace {

struct PatchRun {
  std::int64_t at, length;  // in the stage, from the output's first element; elements
};

// Where the stage of a slab starts and how large it is, and the tables of a problem.
struct Patches {
  std::int64_t low_h, low_w, height, width;  // of a slice
  std::int64_t line;                         // elements of a row of it, all channels
  std::int64_t runs_count;
  PatchRun* runs;
  std::int64_t* weights;  // of each term, in elements

  std::int64_t elements(const Dense& d) const { return d.axis[0].taps * height * line + 2 * kDepth; }
};

inline std::int64_t low_offset(const Axis& a) { return imin(tap_offset(a, 0), tap_offset(a, a.taps - 1)); }
inline std::int64_t reach_over(const Axis& a) {
  return (a.taps - 1) * (a.offset_step < 0 ? -a.offset_step : a.offset_step) + 1;
}
// The tap whose source is the i-th in memory.
inline std::int64_t tap_in_order(const Axis& a, std::int64_t i) {
  return a.offset_step < 0 ? a.taps - 1 - i : i;
}

inline Patches make_patches(const Dense& d, const TilesPlan& p) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  Patches s{};
  s.low_h = low_offset(h);
  s.low_w = low_offset(w);
  s.height = (p.rows - 1) * h.step + reach_over(h);
  s.width = (p.columns - 1) * w.step + reach_over(w);
  s.line = s.width * d.red_c;
  return s;
}

// Runs, and where the weight of each of their terms is. Neighbouring taps join.
inline void list_runs(const Dense& d, Patches& s) {
  const Axis &z = d.axis[0], &h = d.axis[1], &w = d.axis[2];
  std::int64_t* weight = s.weights;
  std::int64_t end = -1;
  for (std::int64_t i = 0; i < z.taps * h.taps * w.taps; ++i) {
    const std::int64_t tw = tap_in_order(w, i % w.taps), th = i / w.taps % h.taps, tz = i / w.taps / h.taps;
    const std::int64_t row = (tz * s.height + tap_offset(h, th) - s.low_h) * s.line;
    const std::int64_t at = row + (tap_offset(w, tw) - s.low_w) * d.red_c;
    if (at == end && i % w.taps != 0)
      s.runs[s.runs_count - 1].length += d.red_c;
    else
      s.runs[s.runs_count++] = {at, d.red_c};
    end = at + d.red_c;
    const std::int64_t tap = tz * z.weight_step + th * h.weight_step + tw * w.weight_step;
    for (std::int64_t c = 0; c < d.red_c; ++c) *weight++ = tap + c * d.weight_red;
  }
}

// One row of the image from source column x0, channels innermost; null outside.
inline void stage_row(const Dense& d, const Patches& s, const bf16* row, std::int64_t x0, bf16* to) {
  const Axis& w = d.axis[2];
  const std::int64_t begin = row ? imin(s.width, imax(0, -x0)) : s.width;
  const std::int64_t end = row ? imax(begin, imin(s.width, w.source - x0)) : s.width;
  std::memset(to, 0, begin * d.red_c * sizeof(bf16));
  std::memset(to + end * d.red_c, 0, (s.width - end) * d.red_c * sizeof(bf16));
  if (begin == end) return;
  const bf16* from = row + (x0 + begin) * w.source_stride;
  to += begin * d.red_c;
  if (d.src_c == 1 && w.source_stride == d.red_c) {
    std::memcpy(to, from, (end - begin) * d.red_c * sizeof(bf16));
    return;
  }
  for (std::int64_t c = 0; c < d.red_c; ++c, from += d.src_c)
    for (std::int64_t x = 0; x < end - begin; ++x) to[x * d.red_c + c] = from[x * w.source_stride];
}

inline void stage_slab(const Dense& d, const Patches& s, const bf16* from, const Slab& slab, bf16* stage) {
  const Axis &z = d.axis[0], &h = d.axis[1];
  const std::int64_t rows = (slab.y1 - slab.y0 - 1) * h.step + reach_over(h);
  for (std::int64_t tz = 0; tz < z.taps; ++tz)
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t in_z = slab.z * z.step + tap_offset(z, tz), in_y = slab.y0 * h.step + s.low_h + r;
      const bool inside = in_z >= 0 && in_z < z.source && in_y >= 0 && in_y < h.source;
      const bf16* row = from + slab.n * d.src_n + in_z * z.source_stride + in_y * h.source_stride;
      stage_row(d, s, inside ? row : nullptr, slab.x0 * d.axis[2].step + s.low_w,
                stage + (tz * s.height + r) * s.line);
    }
}

// Patches of a slab, from its stage. Writes up to 31 elements past the last one.
inline void copy_patches(const Dense& d, const TilesPlan& p, const Patches& s, const bf16* from,
                         const Slab& slab, bf16* stage, bf16* to) {
  stage_slab(d, s, from, slab, stage);
  const std::int64_t step = d.axis[2].step * d.red_c;
  const __mmask32 rest = ~lanes32(p.channels - (p.blocks - 1) * kDepth);
  for (std::int64_t y = 0; y < slab.y1 - slab.y0; ++y)
    for (std::int64_t x = 0; x < slab.x1 - slab.x0; ++x) {
      const bf16* at = stage + y * d.axis[1].step * s.line + x * step;
      bf16* patch = to + (y * p.width + x) * p.pitch;
      bf16* end = patch;
      for (std::int64_t i = 0; i < s.runs_count; ++i) {
        const PatchRun run = s.runs[i];
        for (std::int64_t k = 0; k < run.length; k += kDepth)
          _mm512_storeu_si512(end + k, _mm512_loadu_si512(at + run.at + k));
        end += run.length;
      }
      _mm512_mask_storeu_epi16(patch + (p.blocks - 1) * kDepth, rest, _mm512_setzero_si512());
    }
}

}  // namespace
}  // namespace convnorm::conv
