// Winograd convolution of a Dense problem (2x2 to 5x5 taps at a phase of the stride, any dilation, either
// direction of the taps), see conv_winograd_transform.h.
//
// 36 matrix products M[xi] = V[xi] U[xi]: rows are tiles, columns output channels, the sum runs over input
// channels, of all slices (conv_winograd_slices.h) where there are several: those of a slice are padded to
// whole vectors then. By input at a stride, V is multiplied for several targets (conv_winograd_targets.h).
// Two schedules, chosen by shape:
//
//   by tiles (many tiles):            U of all filters once, shared
//     for task = 12 to 108 tiles:     V of the block, which stays in or near L2
//       for panel of filters:         36 products (36 x 24 x 32 values), then the output transform
//   by filters (few tiles, much U):   V of at most 144 tiles, shared
//     for task = panel of filters:    for 256 input channels: U of the panel; 36 products added up
//                                     then the output transform
//
// By filters, U never exists as a whole (512 x 512 filters: 38 MB). An element's sum is over the same blocks
// of channels in the same order in both, wherever its tile and panel are computed.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kPanel = kCols<float>;

inline constexpr std::int64_t kDepth = 256;     // input channels added up at a time
inline constexpr std::int64_t kMostBlocks = 4;  // by tiles: so many times kBlockTiles at a time,
inline constexpr std::int64_t kBlockBytes = 8192 * CONVNORM_VECTOR_BYTES;  // and bytes of V, a part of L2
inline constexpr std::int64_t kMostTiles = 144;                            // by filters: at a time,
inline constexpr std::int64_t kMostBytes = 16 << 20;                       // and bytes of V
inline constexpr std::int64_t kMostFilters = 12 << 20;                     // by tiles: bytes of U

static_assert(kBlockTiles % kRows == 0);

struct WinogradPlan {
  Targets targets;
  Grid grid;
  Slices slices;
  std::int64_t side, taps;  // of a window along an axis, and its square
  bool by_filters;
  std::int64_t panels;          // of kPanel filters, of a target
  std::int64_t block;           // tiles of a task; by filters: at a time
  std::int64_t slice_channels;  // of a slice, in the sum
  std::int64_t reduced;         // of all of them
  std::int64_t depth;           // added up at a time
  std::int64_t v_row, v_plane, u_plane, m_plane;

  const Dense& source() const { return targets.joint; }
  std::int64_t u_panel() const { return kPoints * u_plane; }
  std::int64_t m_panel() const { return kPoints * m_plane; }  // of a phase
  std::int64_t blocks() const { return ceil_div(grid.tiles, block); }
  Tiles products(float* m) const { return {m, kPanel, m_plane}; }
  Tiles inputs(float* v) const { return {v, v_row, v_plane}; }
};

// An odd number of cache lines: 36 planes written at a time fall into different sets of L1.
inline std::int64_t odd_plane(std::int64_t n) { return (ceil_div(n, kLine) | 1) * kLine; }

// Channels of a slice in the sum: several slices are padded to whole vectors each.
inline std::int64_t channels_of_slice(const Dense& d, const Slices& slices) {
  return slices.count() == 1 ? d.red_c : ceil_div(d.red_c, kL) * kL;
}

// Tiles of a task. Where sums are short the calls for 36 products weigh most, and many tiles share them. All
// threads get as many, to within one, at which blocks may be an eighth larger.
inline std::int64_t block_of_tiles(const WinogradPlan& p) {
  const std::int64_t room = kBlockBytes / std::int64_t(kPoints * sizeof(float) * kBlockTiles * p.v_row);
  const std::int64_t most = imax(1, imin(room, kMostBlocks)) * kBlockTiles, threads = parallel_width();
  const std::int64_t tasks = ceil_div(8 * p.grid.tiles, 9 * most * threads) * threads;
  const std::int64_t unit = cut_unit(p.grid);
  return imax(kRows, ceil_div(ceil_div(p.grid.tiles, tasks), unit) * unit);
}

inline WinogradPlan make_winograd_plan(const Dense* problems, std::int64_t count, std::int64_t phases) {
  WinogradPlan p{};
  p.targets = make_targets(problems, count, phases);
  const Dense& d = p.source();
  p.grid = make_grid(d);
  p.slices = make_slices(d);
  p.side = p.slices.h.taps;
  p.taps = p.side * p.side;
  p.panels = ceil_div(d.out_c, kPanel);
  const std::int64_t slices = p.slices.count(), padded = ceil_div(d.red_c, kL) * kL;
  p.slice_channels = channels_of_slice(d, p.slices);
  p.reduced = slices * p.slice_channels;
  p.v_row = slices * padded;
  p.depth = ceil_div(ceil_div(p.reduced, ceil_div(p.reduced, kDepth)), kL) * kL;
  const std::int64_t filters = kPoints * sizeof(float) * count * p.panels * kPanel * p.reduced;
  p.by_filters = p.grid.tiles <= kFewTiles || filters > kMostFilters;
  if (!p.by_filters) {
    p.block = block_of_tiles(p);
  } else {
    const std::int64_t unit = p.grid.gap_w == 1 ? kRows : kBlockTiles;  // groups of tiles stay together
    const std::int64_t room = kMostBytes / std::int64_t(kPoints * sizeof(float) * p.v_row);
    const std::int64_t most = imin(kMostTiles, imax(room / kBlockTiles, 1) * kBlockTiles);
    p.block = ceil_div(ceil_div(p.grid.tiles, ceil_div(p.grid.tiles, most)), unit) * unit;
  }
  p.v_plane = odd_plane(p.block * p.v_row);
  p.u_plane = odd_plane((p.by_filters ? p.depth : p.reduced) * kPanel);
  p.m_plane = odd_plane(p.block * kPanel);
  return p;
}

// Vectors of filters in a panel.
inline std::int64_t panel_vectors(const Dense& d, std::int64_t panel) {
  return ceil_div(imin(kPanel, d.out_c - panel * kPanel), kL);
}

// U of terms [e0, e1) of the sum, of one panel, to u[xi * plane + (e - e0) * kPanel]. Filters are first
// copied to `raw`, a vector of filters per tap, in the order in which they can be turned in registers; where
// they were packed before, they are raw already: [panel][term][taps][kPanel] of every piece of 32 channels.
inline constexpr std::int64_t kRawChannels = 32;

// Terms of the sum that are copied at a time: channels of one slice.
struct Piece {
  std::int64_t slice, c, channels, terms;  // terms: with those that pad the slice
};

inline Piece piece_at(const Dense& d, const WinogradPlan& p, std::int64_t e, std::int64_t end) {
  const std::int64_t slice = e / p.slice_channels, c = e % p.slice_channels;
  const std::int64_t terms = imin(kRawChannels, imin(end - e, p.slice_channels - c));
  return {slice, c, imax(0, imin(terms, d.red_c - c)), terms};
}

inline bool channels_last_weight(const Dense& d) { return d.axis[2].weight_step != 1; }

// d: the problem of the slice's weights.
inline void raw_piece(const Dense& d, std::int64_t panel, const Piece& piece, float* raw) {
  const std::int64_t k0 = panel * kPanel, lanes = imin(kPanel, d.out_c - k0);
  const std::int64_t taps = d.axis[1].taps * d.axis[2].taps;
  pack_weight_panel<float, float>(d, 0, Block{0, taps, piece.c, piece.c + piece.channels, 0},
                                  channels_last_weight(d), k0, lanes, kPanel, raw);
}

// next: weights that are packed come from memory, and those of the next piece are asked for; or null. d: as
// above; windows of `side` x `side`, of which a short phase has less.
inline void transform_piece(const Dense& d, std::int64_t side, std::int64_t vectors, const Piece& piece,
                            const float* raw, const float* next, float* u, std::int64_t plane) {
  const bool last = channels_last_weight(d);  // taps, then channels
  const std::int64_t taps_h = d.axis[1].taps, taps_w = d.axis[2].taps;
  std::int64_t tap = last ? piece.channels * kPanel : kPanel, row = taps_w * tap;
  const std::int64_t taps_of_channel = taps_h * taps_w * kPanel, channel = last ? kPanel : taps_of_channel;
  if (d.axis[1].offset_step < 0) raw += (taps_h - 1) * row, row = -row;
  if (d.axis[2].offset_step < 0) raw += (taps_w - 1) * tap, tap = -tap;
  with_taps(side, [&](auto taps) {
    for (std::int64_t i = 0; i < piece.channels; ++i) {
      for (std::int64_t l = 0; next && l < taps_of_channel; l += kLine)
        __builtin_prefetch(next + i * taps_of_channel + l);
      for (std::int64_t v = 0; v < vectors; ++v)
        transform_weight<taps>(raw + i * channel + v * kL, row, tap, taps_h, taps_w, u + i * kPanel + v * kL,
                               plane);
    }
  });
}

inline std::int64_t raw_panel(const WinogradPlan& p) { return p.taps * kPanel * p.reduced; }

inline void weight_panel(const Dense& d, const WinogradPlan& p, std::int64_t panel, std::int64_t e0,
                         std::int64_t e1, float* raw, float* u) {
  for (std::int64_t e = e0; e < e1;) {
    const Piece piece = piece_at(d, p, e, e1);
    const Dense weights = weights_of(d, p.slices.at(piece.slice));
    const float* from = raw;
    if (d.packed)
      from = static_cast<const float*>(d.packed) + panel * raw_panel(p) + p.taps * kPanel * e;
    else if (piece.channels > 0)
      raw_piece(weights, panel, piece, raw);
    float* to = u + (e - e0) * kPanel;
    const float* next = d.packed ? from + p.taps * kPanel * piece.terms : nullptr;
    transform_piece(weights, p.side, panel_vectors(d, panel), piece, from, next, to, p.u_plane);
    for (std::int64_t xi = 0; piece.channels < piece.terms && xi < kPoints; ++xi)
      zero(to + xi * p.u_plane + piece.channels * kPanel, (piece.terms - piece.channels) * kPanel);
    e += piece.terms;
  }
}

// m[xi] (+)= v[xi] u[xi] for those of the terms [e0, e1) of the sum that the product has, whose weights, so
// many vectors wide, start at u.
inline void multiply(const WinogradPlan& p, Wanted wanted, const float* v, std::int64_t tiles,
                     std::int64_t e0, std::int64_t e1, const float* u, std::int64_t vectors, float* m,
                     WinogradAhead& ahead) {
  TileBlock<float> block{};
  block.columns = 1;
  std::int64_t rows[kMostTiles];
  for (std::int64_t t = 0; t < tiles; ++t) rows[t] = t * kPanel;
  block.lda = p.v_row;
  block.c_rows = rows;
  for (int xi = 0; xi < kPoints; ++xi) {
    const Span slices = p.slices.of_product(xi);
    const std::int64_t first = slices.begin * p.slice_channels;
    const std::int64_t begin = imax(e0, first), end = imin(e1, slices.end * p.slice_channels);
    if (begin >= end || xi / kReach >= wanted.h || xi % kReach >= wanted.w) continue;
    block.depth = end - begin;
    block.piece = piece_length(block.depth, chain_limit(p.v_row));
    block.start = begin == first ? Start::zero : Start::add_to_c;
    block.b = u + xi * p.u_plane + (begin - e0) * kPanel;
    block.a = v + xi * p.v_plane + begin;
    block.c = m + xi * p.m_plane;
    ahead.ask_in(block, ceil_div(tiles, kRows) * asked_by_tile(block), block.b + p.u_plane);
    run_equal_tiles<float, Form::by_rows>(block, tiles, vectors);
  }
}

// The outputs of one panel of filters for tiles [t0, t1) of a row of phases, whose products start at m.
inline void output_panel(const WinogradPlan& p, std::int64_t row, std::int64_t panel, std::int64_t t0,
                         std::int64_t t1, float* m, float* strip) {
  const Dense& d = p.source();
  const std::int64_t k = panel * kPanel, lanes = imin(kPanel, d.out_c - k);
  F bias[kColVecs] = {};
  for (std::int64_t v = 0; d.bias && v < ceil_div(lanes, kL); ++v)
    bias[v] = load_n(static_cast<const float*>(d.bias) + k + v * kL, imin(kL, lanes - v * kL));
  with_taps(p.side, [&](auto taps) {
    each_run(p.grid, t0, t1, [&](const TileRun& run) {
      const OutputRun<winograd_tile(taps)> outputs(p.targets, row, p.grid, run, k, lanes);
      outputs.write(p.products(m), p.m_panel(), bias, strip);
    });
  });
}

// Scratch of a worker: the parts that a task needs.
struct WinogradWork {
  float *strip, *raw, *u, *v, *m;
};

inline WinogradWork make_work(const WinogradPlan& p, bool raw, bool u, bool v, bool m) {
  const auto planes = [](bool wanted, std::int64_t plane) { return wanted ? kPoints * plane : 0; };
  return carve_scratch(Slot::local, [&](Arena& arena) {
    WinogradWork w;
    w.strip = arena.take<float>(strip_elements(p.grid, imin(p.block, p.grid.columns), p.targets.phases));
    w.raw = arena.take<float>(raw ? kRawChannels * p.taps * kPanel : 0);
    w.u = arena.take<float>(planes(u, p.u_plane));
    w.v = arena.take<float>(planes(v, p.v_plane));
    w.m = arena.take<float>(p.targets.phases * planes(m, p.m_plane));
    return w;
  });
}

// U of all filters, target after target.
inline void all_weights(const WinogradPlan& p, float* u) {
  parallel_for(p.targets.count * p.panels, 1, [&](std::int64_t begin, std::int64_t end) {
    const WinogradWork work = make_work(p, true, false, false, false);
    for (std::int64_t k = begin; k < end; ++k)
      weight_panel(p.targets.problems[k / p.panels], p, k % p.panels, 0, p.reduced, work.raw,
                   u + k * p.u_panel());
  });
}

inline void winograd_by_tiles(const WinogradPlan& p) {
  const Dense& d = p.source();
  const std::int64_t phases = p.targets.phases;
  const float* u = static_cast<const float*>(d.packed);
  if (!u) {
    const std::int64_t elements = p.targets.count * p.panels * p.u_panel();
    float* made = static_cast<float*>(scratch_bytes(Slot::shared, elements * sizeof(float)));
    all_weights(p, made);
    u = made;
  }
  parallel_for(p.blocks(), 1, [&](std::int64_t begin, std::int64_t end) {
    const WinogradWork work = make_work(p, false, false, true, true);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t t0 = i * p.block, t1 = imin(p.grid.tiles, t0 + p.block);
      each_run(p.grid, t0, t1, [&](const TileRun& run) {
        for (std::int64_t i = 0; i < p.slices.count(); ++i)
          input_run(d, p.grid, run, p.slices.at(i), 0, d.red_c, work.strip,
                    p.inputs(work.v + i * p.slice_channels));
      });
      WinogradAhead ahead(d, p.grid, t1, t1 + p.block);
      for (std::int64_t k = 0; k < p.panels; ++k)
        for (std::int64_t j = 0; j < p.targets.count; ++j) {
          const float* weights = u + (j * p.panels + k) * p.u_panel();
          for (std::int64_t e = 0; e < p.reduced; e += p.depth)
            multiply(p, p.targets.at(j).wanted, work.v, t1 - t0, e, imin(p.reduced, e + p.depth),
                     weights + e * kPanel, panel_vectors(d, k), work.m + j % phases * p.m_panel(), ahead);
          if ((j + 1) % phases == 0) output_panel(p, j / phases, k, t0, t1, work.m, work.strip);
        }
    }
  });
}

inline constexpr std::int64_t kInputChannels = 32;  // of a task of the input transform

inline void winograd_by_filters(const WinogradPlan& p) {
  const Dense& d = p.source();
  const std::int64_t phases = p.targets.phases;
  float* v = static_cast<float*>(scratch_bytes(Slot::shared, kPoints * p.v_plane * sizeof(float)));
  for (std::int64_t t0 = 0; t0 < p.grid.tiles; t0 += p.block) {
    const std::int64_t t1 = imin(p.grid.tiles, t0 + p.block);
    const std::int64_t pieces = ceil_div(d.red_c, kInputChannels);
    parallel_for(p.slices.count() * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
      const WinogradWork work = make_work(p, false, false, false, false);
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t slice = i / pieces, c0 = i % pieces * kInputChannels;
        const std::int64_t c1 = imin(d.red_c, c0 + kInputChannels);
        each_run(p.grid, t0, t1, [&](const TileRun& run) {
          input_run(d, p.grid, run, p.slices.at(slice), c0, c1, work.strip,
                    p.inputs(v + slice * p.slice_channels));
        });
      }
    });
    parallel_for(p.panels * p.targets.rows(), 1, [&](std::int64_t begin, std::int64_t end) {
      const WinogradWork work = make_work(p, true, true, false, true);
      WinogradAhead no_pixels;
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t k = i % p.panels, row = i / p.panels;
        for (std::int64_t j = 0; j < phases; ++j) {
          const Target target = p.targets.at(row * phases + j);
          for (std::int64_t e = 0; e < p.reduced; e += p.depth) {
            const std::int64_t end_e = imin(p.reduced, e + p.depth);
            weight_panel(*target.d, p, k, e, end_e, work.raw, work.u);
            multiply(p, target.wanted, v, t1 - t0, e, end_e, work.u, panel_vectors(d, k),
                     work.m + j * p.m_panel(), no_pixels);
          }
        }
        output_panel(p, row, k, t0, t1, work.m, work.strip);
      }
    });
  }
}

inline void run_winograd(const Dense* problems, std::int64_t count, std::int64_t phases) {
  const WinogradPlan p = make_winograd_plan(problems, count, phases);
  p.by_filters ? winograd_by_filters(p) : winograd_by_tiles(p);
}

// Weights that are kept: U by tiles; by filters they are raw, as U would take four times as long to read as
// the transform takes.
inline std::int64_t winograd_packed_bytes(const Dense& d) {
  const WinogradPlan p = make_winograd_plan(&d, 1, 1);
  return p.panels * (p.by_filters ? raw_panel(p) : p.u_panel()) * std::int64_t(sizeof(float));
}

inline void winograd_pack(const Dense& d, void* out) {
  const WinogradPlan p = make_winograd_plan(&d, 1, 1);
  float* to = static_cast<float*>(out);
  if (!p.by_filters) return all_weights(p, to);
  parallel_for(p.panels, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k)
      for (std::int64_t e0 = 0; e0 < p.reduced; e0 += p.depth)
        for (std::int64_t e = e0, e1 = imin(p.reduced, e0 + p.depth); e < e1;) {
          const Piece piece = piece_at(d, p, e, e1);
          if (piece.channels > 0)
            raw_piece(weights_of(d, p.slices.at(piece.slice)), k, piece,
                      to + k * raw_panel(p) + p.taps * kPanel * e);
          e += piece.terms;
        }
  });
}

}  // namespace
}  // namespace convnorm::conv
