// Winograd by weight (2x2 to 5x5 taps at a phase of the stride), see conv_winograd_transform.h:
//
//   gw[k][e] = G' [ sum over tiles of (A dY A')[k] . (B' d B)[e] ] G,      e = (slice, input channel)
//
// 36 matrix products M[xi] = W[xi]' V[xi]: rows are output channels, columns the terms e, the sum runs over
// tiles. V lies in panels of 32 terms and W in panels of a block's channels, so that a product reads pages
// through.
//
//   for part of the tiles (1 to 16, by shape), each with a sum gw of its own:
//     for chunk of the part (V and W of 2 to 16 MB):
//       V and W of the chunk                           over tiles and panels
//       for block of M (48 x 64), which stays in L2:
//         36 products over the chunk, 192 tiles at a time; gw (+)= G' M G
//   gw of the parts are added in order
//
// A thread takes whole parts where they are shared out evenly enough: what a core wrote stays in its own
// caches (what another chip of the processor has to fetch takes several times as long). Else threads share V
// and W. The sums are the same either way.
//
// grad_bias is summed from a 37th plane of W, the sums of the tiles of gradients.
//
// Include after conv_winograd_tiles.h and conv_igemm_weight_sums.h.
#pragma once

namespace convnorm::conv {
namespace {

// Tiles of a chunk: about what L2 holds of V and W, but enough to be worth the last transform of all filters.
inline constexpr std::int64_t kChunkBytes = 2 << 20, kMostChunkBytes = 16 << 20;
inline constexpr std::int64_t kLeastChunk = 96;
inline constexpr std::int64_t kLeastPart = 64, kMostParts = 16;  // tiles of a part, and parts
inline constexpr std::int64_t kMostPartBytes = 1 << 20;          // of gw
inline constexpr std::int64_t kTilesAtOnce = 192;                // of a sum: 32 columns of V stay in L1
inline constexpr std::int64_t kPieceTiles = 48;                  // of a transform's task, whole groups
inline constexpr std::int64_t kSumBlock = 4096;                  // elements added up by a task
inline constexpr std::int64_t kRowTiles = 4, kColumnTiles = 2;   // of a block of M, at most

// Transforms in panels of so many channels: [panel][xi][tile][width].
struct Panels {
  std::int64_t width, count, plane, size;
  Tiles panel(float* data, std::int64_t i) const { return {data + i * size, width, plane}; }
};
inline Panels make_panels(std::int64_t channels, std::int64_t width, std::int64_t tiles, int planes) {
  const std::int64_t plane = odd_plane(tiles * width);
  return {width, ceil_div(channels, width), plane, planes * plane};
}

struct WeightGradientPlan {
  Grid grid;
  Slices slices;
  std::int64_t parts, part, chunk;     // parts; tiles
  std::int64_t elements;               // of gw
  bool by_parts;                       // a thread takes whole ones
  std::int64_t slice_channels, terms;  // padded, as in forward
  Panels v, w;                         // a panel of w is a block of rows
  std::int64_t column_blocks;          // of panels of v
  std::int64_t m_row, m_plane;
  std::int64_t blocks() const { return w.count * column_blocks; }
};

// Parts and chunks of equal length, of tiles with so many channels of V and W.
inline void cut_tiles(const Dense& d, std::int64_t channels, WeightGradientPlan& p) {
  const std::int64_t unit = cut_unit(p.grid);
  const auto cut = [&](std::int64_t tiles, std::int64_t pieces) {
    return ceil_div(ceil_div(tiles, pieces), unit) * unit;
  };
  p.elements = d.out_c * d.red_c * tap_count(d);
  std::int64_t parts = 1;
  if (p.elements * std::int64_t(sizeof(float)) <= kMostPartBytes)
    while (parts < kMostParts && p.grid.tiles >= 2 * parts * kLeastPart) parts *= 2;
  p.part = cut(p.grid.tiles, parts);
  p.parts = ceil_div(p.grid.tiles, p.part);
  const std::int64_t turns = ceil_div(p.parts, parallel_width()) * parallel_width();
  p.by_parts = p.parts > 1 && 4 * turns <= 5 * p.parts;  // else threads would be idle for a fifth of the time
  const std::int64_t tile = kPoints * sizeof(float) * channels;
  const std::int64_t most = imax(unit, imin(imax(kChunkBytes / tile, kLeastChunk), kMostChunkBytes / tile));
  p.chunk = cut(p.part, imax(1, (p.part + most / 2) / most));
}

inline WeightGradientPlan make_weight_gradient_plan(const Dense& d) {
  WeightGradientPlan p{};
  p.grid = make_grid(d);
  p.slices = make_slices(d);
  const std::int64_t slices = p.slices.count(), padded = ceil_div(d.red_c, kL) * kL;
  p.slice_channels = channels_of_slice(d, p.slices);
  p.terms = slices * p.slice_channels;
  cut_tiles(d, slices * padded + d.out_c, p);
  // Smaller blocks where threads would have nothing to do.
  const std::int64_t threads = p.by_parts ? 1 : parallel_width();
  const std::int64_t rows = ceil_div(d.out_c, kRows), columns = ceil_div(p.terms, kPanel);
  std::int64_t tall = kRowTiles, wide = kColumnTiles;
  while (ceil_div(rows, tall) * ceil_div(columns, wide) < 2 * threads && tall * wide > 1)
    (tall > 1 ? tall : wide) /= 2;
  p.column_blocks = ceil_div(columns, wide);
  const std::int64_t height = ceil_div(ceil_div(d.out_c, ceil_div(rows, tall)), kL) * kL;
  p.v = make_panels(slices * padded, kPanel, p.chunk, kPoints);
  p.w = make_panels(d.out_c, height, p.chunk, kPoints + 1);
  p.m_row = wide * kPanel;
  p.m_plane = odd_plane(height * p.m_row);
  return p;
}

// Panel i of V, for a run of tiles: its terms may belong to several slices.
inline void input_panel(const Dense& d, const WeightGradientPlan& p, const TileRun& run, std::int64_t i,
                        float* strip, Tiles v) {
  const std::int64_t end = imin(p.terms, (i + 1) * kPanel);
  for (std::int64_t e = i * kPanel; e < end;) {
    const std::int64_t slice = e / p.slice_channels, c = e % p.slice_channels;
    const std::int64_t n = imin(end - e, p.slice_channels - c);
    Tiles to = v;
    to.data += e - i * kPanel - c;
    input_run(d, p.grid, run, p.slices.at(slice), c, imin(d.red_c, c + n), strip, to);
    e += n;
  }
}

// V and W of the tiles [t0, t1) of a chunk, in parallel over pieces of tiles and panels.
inline void transform_chunk(const Dense& d, const WeightGradientPlan& p, std::int64_t t0, std::int64_t t1,
                            float* v, float* w) {
  const Image s = gradient_image(d);
  const std::int64_t panels = p.v.count + p.w.count;
  parallel_for(ceil_div(t1 - t0, kPieceTiles) * panels, 1, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t columns = imin(kPieceTiles, p.grid.columns);
    float* strip =
        static_cast<float*>(scratch_bytes(Slot::local, strip_elements(p.grid, columns, 1) * sizeof(float)));
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t from = i / panels * kPieceTiles, in = i % panels, out = in - p.v.count;
      const bool inputs = out < 0;
      Tiles to = inputs ? p.v.panel(v, in) : p.w.panel(w, out);
      to.data += from * to.row;
      const std::int64_t k0 = out * p.w.width, k1 = imin(d.out_c, k0 + p.w.width);
      each_run(p.grid, t0 + from, imin(t1, t0 + from + kPieceTiles), [&](const TileRun& run) {
        if (inputs) return input_panel(d, p, run, in, strip, to);
        const float* plane = s.data + run.n * s.n_stride + run.plane * d.axis[0].out_stride;
        with_taps(p.slices.h.taps, [&](auto taps) {
          transform_run<winograd_tile(taps)>(s, p.grid, run, plane, k0, k1, strip,
                                             {to.data - k0, to.row, to.plane, {}});
        });
      });
    }
  });
}

// A block of M: output channels [k0, k1), terms [e0, e1).
struct WeightBlock {
  std::int64_t k0, k1, e0, e1;
};

inline WeightBlock weight_block(const Dense& d, const WeightGradientPlan& p, std::int64_t i) {
  const std::int64_t row = i / p.column_blocks, column = i % p.column_blocks;
  const auto term = [&](std::int64_t j) {
    return imin(p.terms, j * ceil_div(p.terms, kPanel) / p.column_blocks * kPanel);
  };
  return {row * p.w.width, imin(d.out_c, (row + 1) * p.w.width), term(column), term(column + 1)};
}

// m[xi] = w[xi]' v[xi] over so many tiles.
inline void multiply_block(const WeightGradientPlan& p, const WeightBlock& b, std::int64_t tiles, float* v,
                           const Tiles& w, const std::int64_t* rows, float* m) {
  TileBlock<float> block{};
  block.lda = w.row;
  block.ldb = block.ahead_ld = kPanel;
  block.ahead_lines = kPanel / kLine;
  block.c_rows = rows;
  block.columns = 1;
  for (std::int64_t xi = 0; xi < kPoints; ++xi) {
    const Span slices = p.slices.of_product(xi);
    for (std::int64_t e = b.e0; e < b.e1; e += kPanel) {
      if (e + kPanel <= slices.begin * p.slice_channels || e >= slices.end * p.slice_channels) continue;
      const float* panel = p.v.panel(v, e / kPanel).data + xi * p.v.plane;
      const bool last = e + kPanel >= b.e1;  // then the next plane of the first panel follows
      const float* next = last ? p.v.panel(v, b.e0 / kPanel).data + (xi + 1) * p.v.plane : panel + p.v.size;
      for (std::int64_t t = 0; t < tiles; t += kTilesAtOnce) {
        block.depth = imin(kTilesAtOnce, tiles - t);
        block.piece = piece_length(block.depth, chain_limit(p.grid.tiles));
        block.start = t == 0 ? Start::zero : Start::add_to_c;
        block.a = w.data + xi * w.plane + t * w.row;
        block.b = panel + t * kPanel;
        block.ahead = next + t * kPanel;
        block.c = m + xi * p.m_plane + (e - b.e0);
        run_equal_tiles<float, Form::interleaved>(block, b.k1 - b.k0, ceil_div(imin(kPanel, b.e1 - e), kL));
      }
    }
  }
}

// Where the taps of a vector of terms lie: those of a filter's channels, in one slice.
struct Place {
  std::int64_t at, lanes;  // from the filter's first weight; lanes: channels, or none
  std::int64_t taps_h, taps_w;
};

inline Place place_of(const Dense& d, const WeightGradientPlan& p, std::int64_t e) {
  const std::int64_t c = e % p.slice_channels;
  const Dense q = weights_of(d, p.slices.at(e / p.slice_channels));
  const std::int64_t skipped = static_cast<float*>(q.weight) - static_cast<float*>(d.weight);
  return {skipped + c * d.weight_red, imin(kL, d.red_c - c), q.axis[1].taps, q.axis[2].taps};
}

// The taps of a vector of terms of a filter whose weights start at `to`; added to what is there but for the
// first chunk.
template <int kTaps>
inline void write_taps(const Dense& d, const Slices& s, const F (&side)[kTaps][kTaps], const Place& place,
                       float* to, bool add) {
  constexpr int kCount = kTaps * kTaps;
  const F* taps = &side[0][0];
  const std::int64_t row = s.h.step * d.axis[1].weight_step, column = s.w.step * d.axis[2].weight_step;
  const std::int64_t lanes = place.lanes;
  const auto exists = [&](int i) { return i / kTaps < place.taps_h && i % kTaps < place.taps_w; };
  to += place.at;
  if (d.weight_red == 1) {
    for (int i = 0; i < kCount; ++i) {
      if (!exists(i)) continue;
      float* at = to + i / kTaps * row + i % kTaps * column;
      __builtin_prefetch(at + d.weight_out, 1);  // pieces of many rows: the hardware follows none of them
      store_n(at, add ? taps[i] + load_n(at, lanes) : taps[i], lanes);
    }
    return;
  }
  int done = 0;
  if (row == kTaps && column == 1)  // a channel's taps follow each other: turned in squares
    for (; 2 * (kCount - done) > kL; done += kL) {
      const std::int64_t n = imin(kL, kCount - done);
      F square[kL] = {};
      for (std::int64_t i = 0; i < n; ++i) square[i] = taps[done + i];
      transpose<float>(square);
      for (std::int64_t c = 0; c < lanes; ++c) {
        float* at = to + c * d.weight_red + done;
        store_n(at, add ? square[c] + load_n(at, n) : square[c], n);
      }
    }
  for (int i = done; i < kCount; ++i)
    for (std::int64_t c = 0; exists(i) && c < lanes; ++c) {
      float* at = to + c * d.weight_red + i / kTaps * row + i % kTaps * column;
      *at = add ? *at + taps[i][c] : taps[i][c];
    }
}

// Products that a short phase has no part of only reach taps that it does not have.
template <int kTaps>
inline void write_block(const Dense& d, const WeightGradientPlan& p, const WeightBlock& b, const float* m,
                        float* gw, bool add) {
  Place places[kColumnTiles * kPanel / kL];
  for (std::int64_t e = b.e0; e < b.e1; e += kL) places[(e - b.e0) / kL] = place_of(d, p, e);
  for (std::int64_t k = b.k0; k < b.k1; ++k, m += p.m_row)
    for (std::int64_t e = b.e0; e < b.e1; e += kL) {
      const Place& place = places[(e - b.e0) / kL];
      if (place.lanes <= 0) continue;
      F taps[kTaps][kTaps];
      transform_back<kTaps, true>(m + e - b.e0, p.m_plane, {}, taps);
      write_taps<kTaps>(d, p.slices, taps, place, gw + k * d.weight_out, add);
    }
}

// The blocks of M over one chunk of tiles.
inline void multiply_chunk(const Dense& d, const WeightGradientPlan& p, std::int64_t tiles, float* v,
                           float* w, float* gw, double* bias, bool add) {
  parallel_for(p.blocks(), 1, [&](std::int64_t begin, std::int64_t end) {
    float* m;
    std::int64_t* rows;
    carve_scratch(Slot::local, [&](Arena& arena) {
      rows = arena.take<std::int64_t>(p.w.width);
      return m = arena.take<float>(kPoints * p.m_plane);
    });
    for (std::int64_t i = 0; i < p.w.width; ++i) rows[i] = i * p.m_row;
    for (std::int64_t i = begin; i < end; ++i) {
      const WeightBlock b = weight_block(d, p, i);
      const Tiles rows_of_w = p.w.panel(w, b.k0 / p.w.width);
      multiply_block(p, b, tiles, v, rows_of_w, rows, m);
      with_taps(p.slices.h.taps, [&](auto taps) { write_block<taps>(d, p, b, m, gw, add); });
      for (std::int64_t t = 0; d.bias && b.e0 == 0 && t < tiles; t += kTilesAtOnce)
        add_bias_sums(rows_of_w.data + kPoints * p.w.plane + t * p.w.width, imin(kTilesAtOnce, tiles - t),
                      b.k1 - b.k0, p.w.width, false, bias + b.k0);
    }
  });
}

// gw and the sums of the bias of one part.
inline void sum_part(const Dense& d, const WeightGradientPlan& p, std::int64_t part, float* gw,
                     double* bias) {
  float *v, *w;
  carve_scratch(Slot::part, [&](Arena& arena) {
    v = arena.take<float>(p.v.count * p.v.size);
    return w = arena.take<float>(p.w.count * p.w.size);
  });
  for (std::int64_t k = 0; k < d.out_c; ++k) bias[k] = 0;
  const std::int64_t begin = part * p.part, end = imin(p.grid.tiles, begin + p.part);
  for (std::int64_t t0 = begin; t0 < end; t0 += p.chunk) {
    const std::int64_t t1 = imin(end, t0 + p.chunk);
    transform_chunk(d, p, t0, t1, v, w);
    multiply_chunk(d, p, t1 - t0, v, w, gw, bias, t0 > begin);
  }
}

inline void winograd_by_weight(const Dense& d) {
  const WeightGradientPlan p = make_weight_gradient_plan(d);
  float* parts;
  double* bias;
  carve_scratch(Slot::shared, [&](Arena& arena) {
    parts = arena.take<float>(p.parts > 1 ? p.parts * p.elements : 0);
    return bias = arena.take<double>(p.parts * d.out_c);
  });
  float* gw = static_cast<float*>(d.weight);
  auto sum_parts = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      sum_part(d, p, i, p.parts > 1 ? parts + i * p.elements : gw, bias + i * d.out_c);
  };
  if (p.by_parts)
    parallel_for(p.parts, 1, sum_parts);
  else
    sum_parts(0, p.parts);
  if (p.parts > 1)
    parallel_for(ceil_div(p.elements, kSumBlock), 1, [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t from = begin * kSumBlock, to = imin(p.elements, end * kSumBlock);
      write_row(Parts<float>{parts, p.parts, p.elements}, from, to - from, gw + from, 1);
    });
  if (d.bias) write_bias<float>(d, bias, p.parts, 0, d.out_c);
}

}  // namespace
}  // namespace convnorm::conv
