// The loops over tasks, filters, blocks of the sum and pixels (see conv_tiles_plan.h).
//
// Include after conv_phases.h, conv_tiles_write.h and conv_tiles_multiply_*.h.
#pragma once

namespace convnorm::conv {
namespace {

struct TilesTask {
  const Dense* d;
  const TilesPlan* plan;
  const bf16* weights;
  const float* bias;          // of all groups, each in whole pairs of tiles
  const std::int64_t* terms;  // of each block of the sum, in elements of the copy
  Patches patches;            // where windows are
  std::int64_t group, slab0, slab1, pair0, pair1;
  // Scratch of the worker.
  bf16 *copies, *stage;
  PixelTile* tiles;
  Piece* pieces;
  float* sums;
  std::int64_t tile_count, piece_count;
};

// Where each block of the sum lies from a pixel of the copy.
inline void list_terms(const Dense& d, const TilesPlan& p, std::int64_t* terms) {
  const Axis &h = d.axis[1], &w = d.axis[2];
  for (std::int64_t t = 0; t < p.taps; ++t) {
    const std::int64_t td = t / (w.taps * h.taps), th = t / w.taps % h.taps, tw = t % w.taps;
    const std::int64_t plane = (td * p.h.phases + plane_of_tap(h, th)) * p.w.phases + plane_of_tap(w, tw);
    const std::int64_t row = (tap_shift(h, th) - p.h.low) * p.width;
    const std::int64_t pixel = p.patches ? 0 : plane * p.plane + row + tap_shift(w, tw) - p.w.low;
    for (std::int64_t c = 0; c < p.blocks; ++c) *terms++ = pixel * p.pitch + c * kDepth;
  }
}

// Copies what the windows of a slab see; `from` is the first channel of the first image.
inline void copy_slab(const Dense& d, const TilesPlan& p, const bf16* from, const Slab& s, bf16* to) {
  const Axis &z = d.axis[0], &h = d.axis[1], &w = d.axis[2];
  const bf16* image = from + s.n * d.src_n;
  const std::int64_t rows = s.y1 - s.y0 + p.h.span;
  for (std::int64_t i = 0; i < p.planes; ++i, to += p.plane * p.pitch) {
    const std::int64_t pw = i % p.w.phases, ph = i / p.w.phases % p.h.phases,
                       tz = i / p.w.phases / p.h.phases;
    const std::int64_t in_z = s.z * z.step + tap_offset(z, tz), phase = tap_phase(h, tap_of_plane(h, ph));
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t in_y = (s.y0 + row + p.h.low) * h.step + phase;
      const bool inside = in_z >= 0 && in_z < z.source && in_y >= 0 && in_y < h.source;
      copy_row({inside ? image + in_z * z.source_stride + in_y * h.source_stride : nullptr, s.x0 + p.w.low,
                w.step, tap_phase(w, tap_of_plane(w, pw)), w.source, w.source_stride, d.src_c, d.red_c,
                p.width, p.pitch, to + row * p.width * p.pitch});
    }
  }
}

// Tiles of a slab that is copied: positions that follow each other over row ends.
inline void list_copied(TilesTask& t, const Slab& s, const bf16* copy) {
  const TilesPlan& p = *t.plan;
  const Dense& d = *t.d;
  const std::int64_t out = s.x1 - s.x0, end = (s.y1 - s.y0 - 1) * p.width + out;
  const std::int64_t at = first_output(d, s);
  for (std::int64_t i = 0; i < end; i += kTile) {
    PixelTile& tile = t.tiles[t.tile_count++] = {copy + i * p.pitch, t.pieces + t.piece_count, 0};
    for (std::int64_t lane = 0; lane < kTile && i + lane < end;) {
      const std::int64_t row = (i + lane) / p.width, x = (i + lane) % p.width;
      const std::int64_t length = imin(out - x, kTile - lane);
      if (length > 0) {
        t.pieces[t.piece_count++] = {lane, length,
                                     at + row * d.axis[1].out_stride + x * d.axis[2].out_stride};
        ++tile.count;
      }
      lane += imax(length, 0) + (x + imax(length, 0) >= out ? p.width - x - imax(length, 0) : 0);
    }
  }
}

inline void multiply(std::int64_t pixels, std::int64_t filters, const TileSum& s) {
  if (pixels > 1)
    filters > 1 ? multiply<2, 2>(s) : multiply<2, 1>(s);
  else
    filters > 1 ? multiply<1, 2>(s) : multiply<1, 1>(s);
}

// 32 filters of all pixels of the task.
inline void multiply_filters(const TilesTask& t, std::int64_t pair) {
  const TilesPlan& p = *t.plan;
  const Dense& d = *t.d;
  const std::int64_t k0 = pair * kPair, filters = imin(kPair, d.out_c - k0);
  const bf16* weights = t.weights + (t.group * p.pairs + pair) * p.depth * 2 * kTileElements;
  const std::int64_t image = t.group * d.out_c;
  const TileResult result{&d, static_cast<bf16*>(d.dst) + image * d.dst_c, k0, filters,
                          t.bias ? t.bias + (t.group * p.pairs + pair) * kPair : nullptr};
  const bool whole = p.chunk == p.depth;
  for (std::int64_t j = 0; j < p.depth; j += p.chunk)
    for (std::int64_t i = 0; i < t.tile_count; i += 2) {
      const std::int64_t pixels = imin(2, t.tile_count - i), columns = ceil_div(filters, kTile);
      float* sums = t.sums + (whole ? 0 : i * 2 * kTile * kTile);
      multiply(pixels, columns,
               {{t.tiles[i].a, t.tiles[i + pixels - 1].a},
                p.pitch * std::int64_t(sizeof(bf16)),
                t.terms + j,
                weights + j * 2 * kTileElements,
                2 * kTileElements,
                imin(p.chunk, p.depth - j),
                j == 0,
                sums});
      if (j + p.chunk < p.depth) continue;
      for (std::int64_t m = 0; m < pixels; ++m)
        write_tile(result, t.tiles[i + m], sums + m * 2 * kTile * kTile);
    }
}

inline void run_tiles_task(TilesTask& t) {
  t.tile_count = t.piece_count = 0;
  const bf16* from = static_cast<const bf16*>(t.d->src) + t.group * t.d->red_c * t.d->src_c;
  for (std::int64_t i = t.slab0; i < t.slab1; ++i) {
    const Slab slab = slab_at(*t.d, *t.plan, i);
    bf16* copy = t.copies + (i - t.slab0) * t.plan->slab_elements();
    if (t.plan->patches)
      copy_patches(*t.d, *t.plan, t.patches, from, slab, t.stage, copy);
    else
      copy_slab(*t.d, *t.plan, from, slab, copy);
    list_copied(t, slab, copy);
  }
  for (std::int64_t pair = t.pair0; pair < t.pair1; ++pair) multiply_filters(t, pair);
}

inline std::int64_t most_pieces(const TilesPlan& p) {
  return p.slab_tiles + p.rows + p.slab_tiles * kTile / p.columns;
}

inline void carve_task(Arena& arena, const TilesPlan& p, TilesTask& t) {
  t.copies = arena.take<bf16>(p.slab_span * p.slab_elements() + kDepth);
  t.stage = arena.take<bf16>(p.patches ? t.patches.elements(*t.d) : 0);
  t.tiles = arena.take<PixelTile>(p.slab_span * p.slab_tiles);
  t.pieces = arena.take<Piece>(p.slab_span * most_pieces(p));
  t.sums = arena.take<float>((p.chunk == p.depth ? 2 : p.slab_span * p.slab_tiles + 1) * 2 * kTile * kTile);
}

// The tables of patches; with no memory, only counts.
inline void carve_patches(Arena& arena, const TilesPlan& p, Patches& s) {
  s.runs = arena.take<PatchRun>(p.patches ? p.channels : 0);
  s.weights = arena.take<std::int64_t>(p.patches ? p.channels : 0);
}

// Terms, weights unless they were packed before, and the bias in float.
inline TilesTask bring_operands(const Dense& d, const TilesPlan& p) {
  TilesTask t{};
  t.d = &d;
  t.plan = &p;
  std::int64_t* terms;
  bf16* weights;
  float* bias;
  if (p.patches) t.patches = make_patches(d, p);
  carve_scratch(Slot::shared, [&](Arena& arena) {
    terms = arena.take<std::int64_t>(p.depth);
    weights = arena.take<bf16>(d.packed ? 0 : tiles_weight_elements(d, p));
    carve_patches(arena, p, t.patches);
    return bias = arena.take<float>(d.bias ? d.groups * p.pairs * kPair : 0);
  });
  list_terms(d, p, terms);
  if (p.patches) list_runs(d, t.patches);
  if (!d.packed) pack_tile_weights(d, p, t.patches.weights, weights);
  const std::int64_t padded = p.pairs * kPair;
  for (std::int64_t i = 0; d.bias && i < d.groups * padded; ++i)
    bias[i] = i % padded < d.out_c
                  ? load1(static_cast<const bf16*>(d.bias) + i / padded * d.out_c + i % padded)
                  : 0;
  t.terms = terms;
  t.weights = d.packed ? static_cast<const bf16*>(d.packed) : weights;
  t.bias = d.bias ? bias : nullptr;
  return t;
}

inline void run_tiles(const Dense& problem) {
  Dense d = problem;
  merge_images(d);
  const TilesPlan p = make_tiles_plan(d);
  const TilesTask shared = bring_operands(d, p);
  parallel_for(d.groups * p.filter_blocks * p.pixel_tasks(), 1, [&](std::int64_t begin, std::int64_t end) {
    TilesTask t = shared;
    carve_scratch(Slot::local, [&](Arena& arena) {
      carve_task(arena, p, t);
      return 0;
    });
    [[maybe_unused]] const UsingTiles tiles;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t pixel = i % p.pixel_tasks(), filter = i / p.pixel_tasks() % p.filter_blocks;
      t.group = i / p.pixel_tasks() / p.filter_blocks;
      t.slab0 = pixel * p.slab_span;
      t.slab1 = imin(p.slabs, t.slab0 + p.slab_span);
      t.pair0 = filter * p.pairs / p.filter_blocks;
      t.pair1 = (filter + 1) * p.pairs / p.filter_blocks;
      run_tiles_task(t);
    }
  });
}

inline void run_tiles_by_input(const Params& p) { each_phase(p, run_tiles); }

inline std::int64_t tiles_packed_bytes(const Dense& d) {
  return tiles_weight_elements(d, make_tiles_plan(d)) * std::int64_t(sizeof(bf16));
}

inline void tiles_pack(const Dense& d, void* out) {
  const TilesPlan p = make_tiles_plan(d);
  Patches patches{};
  if (p.patches) patches = make_patches(d, p);
  carve_scratch(Slot::shared, [&](Arena& arena) {
    carve_patches(arena, p, patches);
    return 0;
  });
  if (p.patches) list_runs(d, patches);
  pack_tile_weights(d, p, patches.weights, static_cast<bf16*>(out));
}

}  // namespace
}  // namespace convnorm::conv
