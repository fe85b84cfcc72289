// Convolution by products of tiles of bfloat16 (AMX), forward and by input (a Dense problem, see conv.h).
//
//   c[16 pixels][16 filters] += a[16 pixels][32 channels] * b[32 channels][16 filters]      in float
//
// Four tiles of c (32 pixels, 32 filters) stay in registers while the sum goes over taps and channels, 32 of
// them at a time. Rows of a are pixels at one distance in memory, so that a tap is a shift of the pointer:
//
//   copied    rows of the image with their padding, channels_last, channels in whole blocks, a plane for each
//             phase of the step. Positions follow each other over row ends: those that are no output are
//             computed, too, and not written
//   patches   few channels: all taps and channels of a window one after the other (conv_tiles_patches.h)
//
//   pack all weights                                    shared scratch, once per call
//   for task = (slabs of rows, filters):                in parallel, by shape alone
//     copy the slabs                                    L2
//     for 32 filters:
//       for block of the sum (its weights stay in L1):
//         for 32 pixels: multiply                       sums of more than one block wait in L2
//           after the last block, write: bias, residual, ReLU, one rounding
//
// Include after conv_taps.h and cpu/arena.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kTile = 16;   // rows of a tile, and its columns of float
inline constexpr std::int64_t kDepth = 32;  // terms of a product of tiles
inline constexpr std::int64_t kPair = 32;   // pixels and filters of a block of four tiles
inline constexpr std::int64_t kTileElements = kTile * kDepth;

inline std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// How the taps along an axis meet its copy. Tap t of output o reads source (o + shift) * step + phase.
struct Reach {
  std::int64_t low, span;  // shifts are low .. low + span
  std::int64_t phases;     // planes of the copy: as many as different phases
};

inline std::int64_t tap_offset(const Axis& a, std::int64_t t) { return a.offset + t * a.offset_step; }
inline std::int64_t tap_shift(const Axis& a, std::int64_t t) { return floor_div(tap_offset(a, t), a.step); }
inline std::int64_t tap_phase(const Axis& a, std::int64_t t) {
  return tap_offset(a, t) - tap_shift(a, t) * a.step;
}
// The tap whose phase is the i-th new one; taps for i = phases.
inline std::int64_t tap_of_plane(const Axis& a, std::int64_t plane) {
  std::int64_t seen = 0;
  for (std::int64_t t = 0; t < a.taps; ++t) {
    bool first = true;
    for (std::int64_t u = 0; u < t; ++u) first = first && tap_phase(a, u) != tap_phase(a, t);
    if (first && seen++ == plane) return t;
  }
  return a.taps;
}
inline std::int64_t plane_of_tap(const Axis& a, std::int64_t t) {
  std::int64_t plane = 0;
  while (tap_phase(a, tap_of_plane(a, plane)) != tap_phase(a, t)) ++plane;
  return plane;
}
inline Reach reach_of(const Axis& a) {
  Reach r{tap_shift(a, 0), 0, 0};
  std::int64_t high = r.low;
  for (std::int64_t t = 0; t < a.taps; ++t) {
    r.low = imin(r.low, tap_shift(a, t));
    high = imax(high, tap_shift(a, t));
  }
  r.span = high - r.low;
  while (tap_of_plane(a, r.phases) < a.taps) ++r.phases;
  return r;
}

inline constexpr std::int64_t kSlabPixels = 512;       // outputs of a slab, at most about
inline constexpr std::int64_t kTaskPixels = 1024;      // and of a task
inline constexpr std::int64_t kTaskBytes = 512 << 10;  // of copies and results: less than L2
inline constexpr std::int64_t kFewBytes = 256 << 10;   // of the same where weights are less than twice that
inline constexpr std::int64_t kChunk = 16;             // blocks of weights that stay in L1: 32 KB
inline constexpr std::int64_t kWantedTasks = 8;

// What a problem is cut into; a function of its shape only.
struct TilesPlan {
  bool patches;
  Reach h, w;
  std::int64_t taps;           // 1 of patches
  std::int64_t channels;       // that a tap is summed over; of patches all terms of the sum
  std::int64_t blocks;         // of 32 of them
  std::int64_t pitch;          // elements from pixel to pixel
  std::int64_t rows, columns;  // of outputs of a slab
  std::int64_t width;          // of a row of its copy
  std::int64_t plane;          // pixels of a plane of the copy
  std::int64_t planes;         // of a slab
  std::int64_t bands, across;  // slabs of a plane of outputs: below each other, side by side
  std::int64_t slabs;          // in all
  std::int64_t slab_tiles;     // of the longest
  std::int64_t slab_span;      // slabs of a task
  std::int64_t pairs;          // of tiles of filters
  std::int64_t filter_blocks;  // tasks over the same slabs
  std::int64_t depth;          // blocks of the sum: taps * blocks
  std::int64_t chunk;          // of these at a time

  std::int64_t slab_elements() const { return (planes * plane + kTile) * pitch; }
  std::int64_t pixel_tasks() const { return ceil_div(slabs, slab_span); }
};

// A 1x1 window over images whose pixels follow each other from one to the next, on both sides: one long row.
inline void merge_images(Dense& d) {
  const Axis &z = d.axis[0], &h = d.axis[1];
  Axis& w = d.axis[2];
  const bool single =
      tap_count(d) == 1 && w.step == 1 && z.out * h.out == 1 && z.offset == 0 && h.offset == 0;
  if (!single || w.offset != 0 || w.out != w.source || d.src_n != w.out * w.source_stride ||
      d.dst_n != w.out * w.out_stride)
    return;
  w.out = w.source = w.out * d.n;
  d.n = 1;
}

// What is summed over.
inline void set_sum(const Dense& d, TilesPlan& p) {
  p.patches = d.red_c < kFewestTileChannels;
  p.h = p.patches ? Reach{0, 0, 1} : reach_of(d.axis[1]);
  p.w = p.patches ? Reach{0, 0, 1} : reach_of(d.axis[2]);
  p.taps = p.patches ? 1 : tap_count(d);
  p.channels = p.patches ? tap_count(d) * d.red_c : d.red_c;
  p.blocks = ceil_div(p.channels, kDepth);
  p.depth = p.taps * p.blocks;
}

// Rows, columns and planes of a slab, and how many slabs there are. A pixel has an odd number of lines:
// pixels spread over all sets of L1.
inline void cut_slabs(const Dense& d, std::int64_t bytes, TilesPlan& p) {
  const Axis &z = d.axis[0], &h = d.axis[1], &w = d.axis[2];
  p.pitch = (p.blocks | 1) * kDepth;
  p.planes = p.patches ? 1 : z.taps * p.h.phases * p.w.phases;
  const std::int64_t pixel = (p.planes * p.pitch + d.out_c) * std::int64_t(sizeof(bf16));
  const std::int64_t most = imax(kPair, imin(kSlabPixels, bytes / pixel / kPair * kPair));
  p.columns = imin(w.out, ceil_div(ceil_div(w.out, ceil_div(w.out, most)), kPair) * kPair);
  p.across = ceil_div(w.out, p.columns);
  p.width = p.columns + p.w.span;
  const std::int64_t fit = imax(1, most / p.width);
  p.rows = ceil_div(h.out, ceil_div(h.out, fit));
  p.bands = ceil_div(h.out, p.rows);
  p.plane = (p.rows + p.h.span) * p.width;
  p.slab_tiles = ceil_div((p.rows - 1) * p.width + p.columns, kTile);
  p.slabs = d.n * z.out * p.bands * p.across;
}

inline TilesPlan make_tiles_plan(const Dense& d) {
  TilesPlan p{};
  set_sum(d, p);
  p.pairs = ceil_div(d.out_c, kPair);
  const std::int64_t weights = p.pairs * p.depth * 2 * kTileElements * std::int64_t(sizeof(bf16));
  const std::int64_t bytes = weights <= 2 * kFewBytes ? kFewBytes : kTaskBytes;
  cut_slabs(d, bytes, p);
  p.chunk = p.depth <= kChunk * 3 / 2 ? p.depth : ceil_div(p.depth, ceil_div(p.depth, kChunk));
  const std::int64_t results = p.rows * p.columns * d.out_c;
  const std::int64_t fit = bytes / ((p.slab_elements() + results) * std::int64_t(sizeof(bf16)));
  const std::int64_t span = imin(fit, kTaskPixels / (p.slab_tiles * kTile));
  p.slab_span = imax(1, imin(span, p.slabs / kWantedTasks));
  const auto tasks = [&] { return d.groups * p.pixel_tasks() * p.filter_blocks; };
  for (p.filter_blocks = 1; tasks() < kWantedTasks && p.filter_blocks * 2 <= p.pairs;) p.filter_blocks *= 2;
  return p;
}

// Outputs [y0, y1) x [x0, x1) of a plane.
struct Slab {
  std::int64_t n, z, y0, y1, x0, x1;
};
inline Slab slab_at(const Dense& d, const TilesPlan& p, std::int64_t i) {
  const std::int64_t x = i % p.across * p.columns, y = i / p.across % p.bands * p.rows;
  const std::int64_t z = i / p.across / p.bands;
  return {z / d.axis[0].out,
          z % d.axis[0].out,
          y,
          imin(d.axis[1].out, y + p.rows),
          x,
          imin(d.axis[2].out, x + p.columns)};
}

inline std::int64_t first_output(const Dense& d, const Slab& s) {
  return s.n * d.dst_n + s.z * d.axis[0].out_stride + s.y0 * d.axis[1].out_stride +
         s.x0 * d.axis[2].out_stride;
}

}  // namespace
}  // namespace convnorm::conv
