// By weight, by products of tiles of bfloat16: pixels are what is summed over.
//
//   c[16 filters][16 channels] += gout[16 filters][32 pixels] * x[32 pixels][16 channels]     a tap at a time
//
//   for task = (pieces of the pixels, 32-channel blocks):     in parallel, by shape alone
//     for chunk of about 512 pixels (some slabs, see conv_tiles_plan.h):
//       copy the slabs; pack gout, a row per filter           L2
//       for tap, for 32 channels:
//         pack x, pairs of pixels                             32 KB
//         for 32 filters: multiply                            sums stay in memory between chunks
//   add up the pieces in order, write
//
// Only outputs are summed over: a zero in place of a gradient would not hide a NaN of the image.
//
// Include after conv_tiles_kernel.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kSumTiles = 4 * kTile * kTile;  // 32 filters by 32 channels
inline constexpr std::int64_t kMostSplits = 8, kSplitBytes = 1 << 20;

struct TilesWeightPlan {
  TilesPlan image;              // of the channels of a task
  std::int64_t blocks;          // of 32 channels, in all
  std::int64_t channel_blocks;  // tasks over the same pixels
  std::int64_t taps, pairs;     // of filters
  std::int64_t chunks, splits;  // pieces of the pixels
  std::int64_t chunk_pixels;    // at most, in whole blocks of 32
  std::int64_t ld;              // of a row of gout

  std::int64_t first_block(std::int64_t i) const { return i * blocks / channel_blocks; }
  std::int64_t first_chunk(std::int64_t i) const { return i * chunks / splits; }
  // Sums of a piece, per group: [block of channels][tap][pair of tiles of filters]
  std::int64_t part() const { return blocks * taps * pairs * kSumTiles; }
};

// The channels of some blocks as a problem of their own.
inline Dense channels_of(const Dense& d, std::int64_t block0, std::int64_t block1) {
  Dense part = d;
  part.src = static_cast<const bf16*>(d.src) + block0 * kDepth * d.src_c;
  part.red_c = imin(block1 * kDepth, d.red_c) - block0 * kDepth;
  return part;
}

// With so many of the blocks in a task.
inline void cut_chunks(const Dense& d, std::int64_t blocks, TilesWeightPlan& p) {
  TilesPlan& image = p.image;
  image.blocks = blocks;
  image.depth = p.taps * blocks;
  cut_slabs(d, kTaskBytes, image);
  const std::int64_t pixels = image.rows * image.columns;
  image.slab_span = imax(1, imin(image.slabs, kSlabPixels / pixels));
  p.chunk_pixels = ceil_div(image.slab_span * pixels, kDepth) * kDepth;
  p.chunks = ceil_div(image.slabs, image.slab_span);
  const std::int64_t bytes = d.groups * p.part() * std::int64_t(sizeof(float));
  p.splits = imax(1, imin(imin(p.chunks, kMostSplits), kSplitBytes / bytes));
}

inline TilesWeightPlan make_tiles_weight_plan(const Dense& d) {
  TilesWeightPlan p{};
  set_sum(d, p.image);
  p.blocks = p.image.blocks;
  p.taps = p.image.taps;
  p.pairs = ceil_div(d.out_c, kPair);
  p.channel_blocks = 1;
  cut_chunks(d, p.blocks, p);
  while (!p.image.patches && d.groups * p.splits * p.channel_blocks < kWantedTasks &&
         p.channel_blocks * 2 <= p.blocks) {
    p.channel_blocks *= 2;
    cut_chunks(d, ceil_div(p.blocks, p.channel_blocks), p);
  }
  p.ld = (p.chunk_pixels / kDepth | 1) * kDepth;
  return p;
}

struct TilesWeightTask {
  Dense d;  // the task's channels
  const TilesWeightPlan* plan;
  const std::int64_t* terms;  // of each tap and block of channels
  Patches patches;            // where windows are
  const bf16 *src, *gout;     // the task's first channel and its group's first filter
  std::int64_t block0, block1;
  float* part;        // of the task's piece and group
  double* bias_part;  // of its group; or null
  // Scratch of the worker.
  bf16 *copies, *stage, *rows;  // rows: of gout, one per filter
  bf16* pairs;                  // of pixels, of 32 channels
  std::int64_t *at, *out_at;    // of each pixel of the chunk, in the copies and in gout
  std::int64_t* row_ends;       // and where the row ends that it is in
  std::int64_t* columns;        // where each 32 pixels of a row of gout start
  std::int64_t pixels;
};

// Copies slabs [begin, end) and lists their pixels.
inline void copy_chunk(TilesWeightTask& t, std::int64_t begin, std::int64_t end) {
  const TilesPlan& p = t.plan->image;
  const Dense& d = t.d;
  t.pixels = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    const Slab s = slab_at(d, p, i);
    const std::int64_t copy = (i - begin) * p.slab_elements();
    if (p.patches)
      copy_patches(d, p, t.patches, t.src, s, t.stage, t.copies + copy);
    else
      copy_slab(d, p, t.src, s, t.copies + copy);
    const std::int64_t out = first_output(d, s);
    for (std::int64_t y = s.y0; y < s.y1; ++y)
      for (std::int64_t x = 0, end = t.pixels + s.x1 - s.x0; x < s.x1 - s.x0; ++x, ++t.pixels) {
        t.row_ends[t.pixels] = end;
        t.at[t.pixels] = copy + ((y - s.y0) * p.width + x) * p.pitch;
        t.out_at[t.pixels] = out + (y - s.y0) * d.axis[1].out_stride + x * d.axis[2].out_stride;
      }
  }
}

// 16 filters of a channels_last gradient, 32 pixels at a time.
inline void pack_gout_channels(const TilesWeightTask& t, std::int64_t k, bf16* to) {
  const __mmask16 lanes = lanes16(t.d.out_c - k);
  for (std::int64_t x = 0; x < t.pixels; x += kDepth) {
    const auto pixel = [&](std::int64_t i) {
      return i < t.pixels ? _mm256_maskz_loadu_epi16(lanes, t.gout + k + t.out_at[i])
                          : _mm256_setzero_si256();
    };
    Pairs square[kTile];
    for (std::int64_t i = 0; i < kTile; ++i) square[i] = join(pixel(x + 2 * i), pixel(x + 2 * i + 1));
    turn_pairs(square);
    for (std::int64_t i = 0; i < kTile; ++i) _mm512_store_si512(to + i * t.plan->ld + x, square[i]);
  }
}

// One filter of any other, rows of pixels that follow each other 32 at a time.
inline void pack_gout_plane(const TilesWeightTask& t, std::int64_t k, bf16* to) {
  const bf16* from = t.gout + k * t.d.dst_c;
  for (std::int64_t x = t.pixels; x % kDepth != 0; ++x) to[x] = bf16{};
  if (t.d.axis[2].out_stride != 1) {
    for (std::int64_t x = 0; x < t.pixels; ++x) to[x] = from[t.out_at[x]];
    return;
  }
  for (std::int64_t x = 0; x < t.pixels;) {
    const std::int64_t length = imin(kDepth, t.row_ends[x] - x);
    const __mmask32 lanes = lanes32(length);
    _mm512_mask_storeu_epi16(to + x, lanes, _mm512_maskz_loadu_epi16(lanes, from + t.out_at[x]));
    x += length;
  }
}

inline void pack_gout(const TilesWeightTask& t) {
  const std::int64_t step = t.d.dst_c == 1 ? kTile : 1;
  for (std::int64_t k = 0; k < t.d.out_c; k += step)
    step > 1 ? pack_gout_channels(t, k, t.rows + k * t.plan->ld)
             : pack_gout_plane(t, k, t.rows + k * t.plan->ld);
  for (std::int64_t k = 0; t.bias_part && k < t.d.out_c; ++k) {
    vec<float> sum{};
    for (std::int64_t x = 0; x < ceil_div(t.pixels, kDepth) * kDepth; x += kTile)
      sum += load(t.rows + k * t.plan->ld + x);
    t.bias_part[k] += lane_sum<float>(sum);
  }
}

// Pairs of pixels of 32 channels, a term away from the listed ones. Within a block of 32, channels stay in
// the order in which the processor interleaves them; in_order puts them back.
inline void pack_pixel_pairs(const TilesWeightTask& t, std::int64_t term) {
  const auto pixel = [&](std::int64_t i) {
    return i < t.pixels ? _mm512_load_si512(t.copies + t.at[i] + term) : _mm512_setzero_si512();
  };
  bf16* to = t.pairs;
  for (std::int64_t x = 0; x < t.pixels; x += kDepth, to += 2 * kTileElements)
    for (std::int64_t i = 0; i < kTile; ++i) {
      const Pairs low = pixel(x + 2 * i), high = pixel(x + 2 * i + 1);
      _mm512_store_si512(to + i * kDepth, _mm512_unpacklo_epi16(low, high));
      _mm512_store_si512(to + kTileElements + i * kDepth, _mm512_unpackhi_epi16(low, high));
    }
}

inline void run_tiles_weight_task(TilesWeightTask& t, std::int64_t chunk0, std::int64_t chunk1) {
  const TilesWeightPlan& p = *t.plan;
  for (std::int64_t chunk = chunk0; chunk < chunk1; ++chunk) {
    copy_chunk(t, chunk * p.image.slab_span, imin(p.image.slabs, (chunk + 1) * p.image.slab_span));
    pack_gout(t);
    for (std::int64_t b = 0; b < t.block1 - t.block0; ++b)
      for (std::int64_t tap = 0; tap < p.taps; ++tap) {
        pack_pixel_pairs(t, t.terms[tap * p.image.blocks + b]);
        float* sums = t.part + ((t.block0 + b) * p.taps + tap) * p.pairs * kSumTiles;
        for (std::int64_t k = 0; k < p.pairs; ++k, sums += kSumTiles) {
          const bf16* a = t.rows + k * kPair * p.ld;
          multiply(t.d.out_c - k * kPair > kTile ? 2 : 1, 2,
                   {{a, a + kTile * p.ld},
                    p.ld * std::int64_t(sizeof(bf16)),
                    t.columns,
                    t.pairs,
                    2 * kTileElements,
                    ceil_div(t.pixels, kDepth),
                    chunk == chunk0,
                    sums});
        }
      }
  }
}

// Where lane i of 32 channels is in a tile's row: the order of unpacklo and unpackhi, put back.
inline Pairs in_order(Pairs apart) {
  alignas(64) static constexpr std::uint16_t kFrom[32] = {0,  1,  2,  3,  16, 17, 18, 19, 4,  5,  6,
                                                          7,  20, 21, 22, 23, 8,  9,  10, 11, 24, 25,
                                                          26, 27, 12, 13, 14, 15, 28, 29, 30, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kFrom), apart);
}

// The sums of all pieces, in order, of row `k` of two tiles side by side.
inline Pairs add_pieces(const float* at, std::int64_t row, std::int64_t splits, std::int64_t part) {
  const float* c = at + row * kTile;
  vec<float> low = load(c), high = load(c + kTile * kTile);
  for (std::int64_t i = 1; i < splits; ++i) {
    low += load(c + i * part);
    high += load(c + i * part + kTile * kTile);
  }
  return in_order(bits_as<Pairs>(_mm512_cvtne2ps_pbh(bits_as<__m512>(high), bits_as<__m512>(low))));
}

// Weights of a filter and 32 channels, tap by tap in `taps`; of patches, 32 terms.
inline void write_taps(const Dense& d, const std::int64_t* terms, const bf16* taps, std::int64_t count,
                       std::int64_t channels, bf16* to) {
  if (terms) {
    for (std::int64_t i = 0; i < channels; ++i) to[terms[i]] = taps[i];
    return;
  }
  if (taps_are_dealt(d, d.weight_red)) {
    Pairs in[kDealt], out[kDealt];
    for (std::int64_t t = 0; t < kDealt; ++t) in[t] = _mm512_load_si512(taps + t * kDepth);
    from_taps()(in, out);
    for (std::int64_t i = 0; i < kDealt; ++i)
      _mm512_mask_storeu_epi16(to + i * kDepth, lanes32(channels * kDealt - i * kDepth), out[i]);
    return;
  }
  for (std::int64_t t = 0; t < count; ++t) {
    bf16* at = to + weight_of_tap(d, t);
    if (d.weight_red == 1)
      _mm512_mask_storeu_epi16(at, lanes32(channels), _mm512_load_si512(taps + t * kDepth));
    else
      for (std::int64_t c = 0; c < channels; ++c) at[c * d.weight_red] = taps[t * kDepth + c];
  }
}

// Filters of a pair of tiles.
inline void write_filters(const Dense& d, const TilesWeightPlan& p, const std::int64_t* terms,
                          const float* parts, std::int64_t part, std::int64_t group, std::int64_t pair,
                          bf16* taps) {
  for (std::int64_t k = pair * kPair; k < imin(d.out_c, (pair + 1) * kPair); ++k)
    for (std::int64_t b = 0; b < p.blocks; ++b) {
      const std::int64_t half = k % kPair / kTile * 2 * kTile * kTile, c = b * kDepth;
      for (std::int64_t t = 0; t < p.taps; ++t) {
        const float* sums = parts + ((b * p.taps + t) * p.pairs + pair) * kSumTiles + half;
        _mm512_store_si512(taps + t * kDepth, add_pieces(sums, k % kTile, p.splits, part));
      }
      bf16* to = static_cast<bf16*>(d.weight) + group * d.weight_group + k * d.weight_out +
                 (terms ? 0 : c * d.weight_red);
      write_taps(d, terms ? terms + c : nullptr, taps, p.taps, imin(kDepth, p.image.channels - c), to);
    }
}

inline void carve_weight_task(Arena& arena, const TilesWeightPlan& p, TilesWeightTask& t) {
  t.copies = arena.take<bf16>(p.image.slab_span * p.image.slab_elements() + kDepth);
  t.stage = arena.take<bf16>(p.image.patches ? t.patches.elements(t.d) : 0);
  t.rows = arena.take<bf16>(p.pairs * kPair * p.ld);
  t.pairs = arena.take<bf16>(p.chunk_pixels * kPair);
  t.at = arena.take<std::int64_t>(p.chunk_pixels);
  t.out_at = arena.take<std::int64_t>(p.chunk_pixels);
  t.row_ends = arena.take<std::int64_t>(p.chunk_pixels);
  t.columns = arena.take<std::int64_t>(p.chunk_pixels / kDepth);
}

inline void run_tiles_by_weight(const Dense& d) {
  const TilesWeightPlan p = make_tiles_weight_plan(d);
  const std::int64_t part = d.groups * p.part(), biases = d.bias ? p.splits * d.groups * d.out_c : 0;
  std::int64_t* terms;
  double* bias;
  float* parts;
  Patches patches{};
  if (p.image.patches) patches = make_patches(d, p.image);
  carve_scratch(Slot::shared, [&](Arena& arena) {
    carve_patches(arena, p.image, patches);
    terms = arena.take<std::int64_t>(p.image.depth);
    bias = arena.take<double>(biases);
    return parts = arena.take<float>(p.splits * part);
  });
  list_terms(d, p.image, terms);
  if (p.image.patches) list_runs(d, patches);
  std::fill_n(bias, biases, 0.0);
  parallel_for(d.groups * p.splits * p.channel_blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    TilesWeightTask t{};
    t.d = d;
    t.plan = &p;
    t.terms = terms;
    t.patches = patches;
    carve_scratch(Slot::local, [&](Arena& arena) {
      carve_weight_task(arena, p, t);
      return 0;
    });
    for (std::int64_t i = 0; i < p.chunk_pixels / kDepth; ++i) t.columns[i] = i * kDepth;
    [[maybe_unused]] const UsingTiles tiles;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t channel = i % p.channel_blocks, split = i / p.channel_blocks % p.splits;
      const std::int64_t group = i / p.channel_blocks / p.splits;
      t.block0 = p.first_block(channel);
      t.block1 = p.first_block(channel + 1);
      if (!p.image.patches) t.d = channels_of(d, t.block0, t.block1);
      t.src = static_cast<const bf16*>(t.d.src) + group * d.red_c * d.src_c;
      t.gout = static_cast<const bf16*>(d.dst) + group * d.out_c * d.dst_c;
      t.part = parts + split * part + group * p.part();
      t.bias_part = d.bias && channel == 0 ? bias + (split * d.groups + group) * d.out_c : nullptr;
      run_tiles_weight_task(t, p.first_chunk(split), p.first_chunk(split + 1));
    }
  });
  parallel_for(d.groups * p.pairs, 1, [&](std::int64_t begin, std::int64_t end) {
    bf16* taps = static_cast<bf16*>(scratch_bytes(Slot::local, p.taps * kDepth * sizeof(bf16)));
    for (std::int64_t i = begin; i < end; ++i)
      write_filters(d, p, p.image.patches ? patches.weights : nullptr, parts + i / p.pairs * p.part(), part,
                    i / p.pairs, i % p.pairs, taps);
  });
  for (std::int64_t k = 0; d.bias && k < d.groups * d.out_c; ++k) {
    double sum = 0;
    for (std::int64_t i = 0; i < p.splits; ++i) sum += bias[i * d.groups * d.out_c + k];
    store1(static_cast<bf16*>(d.bias) + k, static_cast<float>(sum));
  }
}

}  // namespace
}  // namespace convnorm::conv
