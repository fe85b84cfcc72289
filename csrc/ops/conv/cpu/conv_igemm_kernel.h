// Implicit GEMM, forward and by input (a Dense problem, see conv.h).
//
// Two orientations of one loop nest; the side that is contiguous in the destination is the vector side:
//
//   pixels across (NCHW)
//     tile rows are output channels (weights, interleaved), columns pixels (P[k][pixel])
//   channels across (NHWC)
//     tile rows are pixels (P[pixel][k], or the image in place, through a table of pointers, or rows of a
//     padded copy), columns output channels (weights)
//
//   pack all weights into panels                               shared scratch, once per call
//   for task = (group, channel block, pixel block):            in parallel, by shape alone
//     for block of the sum (<= 320 deep):
//       for span of columns (320 x 16 values stay in L1):      pixels across: packed here
//         run_tiles over all rows of the task                  weights stream from L2; c is added to
//
// Tiles whose destination cannot be written as whole vectors (16-bit storage, ends of images, strided
// gradients) live in a buffer of the compute type until the last block and are written from there.
//
// Include after conv_phases.h, conv_igemm_pixels.h and conv_igemm_channels.h.
#pragma once

namespace convnorm::conv {
namespace {

template <class C, class D>
void run_task(Task<C>& t) {
  const Dense& d = *t.d;
  const bool ordered = t.plan->indirect;
  Segment* rows = ordered ? t.work.image_rows : t.work.segments;
  t.work.segment_count = make_segments(d, t.pixel0, t.pixel0 + t.pixels, rows);
  if (ordered) t.work.segment_count = order_by_edges(d.axis[2], rows, t.work.segment_count, t.work.segments);
  destination_offsets(d, t.work.segments, t.work.segment_count, t.work.offsets);
  if (t.plan->channel_rows) return run_channels_across<C, D>(t);
  for (std::int64_t k = 0; k < (t.panel1 - t.panel0) * kRows; ++k) t.work.channels[k] = k * d.dst_c;
  run_pixels_across<C, D>(t);
}

// Buffer for every tile of a task, per group. Windowed, each row of outputs ends a tile.
template <class C>
std::int64_t tile_elements(const Dense& d, const Plan<C>& plan, std::int64_t pixels) {
  const std::int64_t width = plan.windowed ? imin(pixels, d.axis[2].out) : imax(1, pixels);
  return ceil_div(plan.panels, plan.channel_blocks) * plan.panel * ceil_div(pixels, width) *
         round_up_line<C>(width);
}

// With no memory, only counts.
template <class C>
Workspace<C> carve(Arena& arena, const Dense& d, const Plan<C>& plan, std::int64_t pixels,
                   std::int64_t depth) {
  const std::int64_t taps = plan.cut.most_taps();
  const std::int64_t rows = ceil_div(pixels, kRows) * kRows;
  const std::int64_t channels = ceil_div(plan.panels, plan.channel_blocks) * kRows;
  Workspace<C> w{};
  w.tiles = arena.take<C>(plan.group_span * tile_elements(d, plan, pixels));
  w.held = arena.take<C>(plan.streamed ? kRows * kCols<C> : 0);
  w.offsets = arena.take<std::int64_t>(pixels);
  w.lines = arena.take<std::int64_t>(plan.channel_rows ? rows : channels);
  w.segments = arena.take<Segment>(pixels + 1);
  if (plan.indirect) {
    w.image_rows = arena.take<Segment>(pixels + 1);
    w.table = arena.take<const C*>(rows * taps);
    w.zeros = arena.take<C>(plan.group_span * plan.cut.channels);
  } else if (plan.copied) {
    w.window = arena.take<std::int64_t>(plan.cut.taps);
    w.terms = arena.take<std::int64_t>(depth);
    w.patches = arena.take<C>(window_elements(d, plan, pixels));
  } else if (plan.channel_rows) {
    w.patches = arena.take<C>(rows * (depth + kSlack<C>));
  } else {
    w.channels = arena.take<std::int64_t>(channels);
    w.window = arena.take<std::int64_t>(plan.windowed ? depth : 0);
    w.patches =
        arena.take<C>(plan.windowed ? window_elements(d, plan, pixels) : depth * plan.span + kSlack<C>);
    w.runs = arena.take<Run>(plan.windowed ? 0 : 3 * taps * kMaxSegments);
  }
  return w;
}

template <class C>
Workspace<C> make_workspace(const Dense& d, const Plan<C>& plan, std::int64_t pixels, std::int64_t depth) {
  Workspace<C> w =
      carve_scratch(Slot::local, [&](Arena& arena) { return carve(arena, d, plan, pixels, depth); });
  if (plan.indirect) zero(w.zeros, plan.group_span * plan.cut.channels);
  const std::int64_t lines = plan.channel_rows ? pixels : ceil_div(plan.panels, plan.channel_blocks) * kRows;
  for (std::int64_t m = 0; m < lines; ++m) w.lines[m] = m * kCols<C>;
  return w;
}

// Where a panel's weights of a block go.
template <class C>
C* packed_panel(const Plan<C>& plan, std::int64_t group, const Block& b, std::int64_t panel, C* out) {
  return out + group * plan.weights + (b.start * plan.panels + panel * b.depth()) * plan.panel;
}

// All blocks of the same channels at a time.
template <class C, class D>
void pack_scattered(const Dense& d, const Plan<C>& plan, C* out) {
  const Cut& cut = plan.cut;
  parallel_for(plan.groups * cut.channel_blocks * plan.panels, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t panel = i % plan.panels, first = i / plan.panels % cut.channel_blocks;
      const std::int64_t group = i / plan.panels / cut.channel_blocks;
      const std::int64_t k0 = plan.first_channel(panel, d.out_c), lanes = imin(plan.panel, d.out_c - k0);
      C* to[kMostScattered];
      Block b{};
      for (std::int64_t j = first; j < cut.count(); j += cut.channel_blocks) {
        b = cut.block(j);
        C* at = packed_panel(plan, group, b, panel, out);
        if (lanes < plan.panel) zero(at, b.depth() * plan.panel);
        for (std::int64_t t = b.tap0; t < b.tap1; ++t, at += (b.c1 - b.c0) * plan.panel) to[t] = at;
      }
      const D* src = static_cast<const D*>(d.weight) + group * d.weight_group + k0 * d.weight_out;
      scatter_taps<D, C>(src + b.c0 * d.weight_red, d.weight_out, lanes, cut.taps, b.c1 - b.c0, plan.panel,
                         to);
    }
  });
}

// Weights of all groups, block after block, panel after panel.
template <class C, class D>
void pack_weights(const Dense& d, const Plan<C>& plan, C* out) {
  if (plan.channel_rows && taps_scatter(d)) return pack_scattered<C, D>(d, plan, out);
  const std::int64_t blocks = plan.cut.count();
  parallel_for(plan.groups * blocks * plan.panels, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t panel = i % plan.panels, group = i / plan.panels / blocks;
      const Block b = plan.cut.block(i / plan.panels % blocks);
      const std::int64_t k0 = plan.first_channel(panel, d.out_c);
      const std::int64_t lanes =
          plan.channel_rows ? imin(plan.panel, d.out_c - k0) : plan.first_channel(panel + 1, d.out_c) - k0;
      pack_weight_panel<D, C>(d, group, b, plan.channel_rows, k0, lanes, plan.panel,
                              packed_panel(plan, group, b, panel, out));
    }
  });
}

// The bias in the compute type, padded per group.
template <class C, class D>
void widen_bias(const Dense& d, const Plan<C>& plan, C* out) {
  const std::int64_t padded = plan.bias_row(d.out_c);
  for (std::int64_t g = 0; g < plan.groups; ++g)
    for (std::int64_t o = 0; o < padded; ++o)
      out[g * padded + o] = o < d.out_c ? load1(static_cast<const D*>(d.bias) + g * d.out_c + o) : C(0);
}

template <class C>
std::int64_t weight_elements(const Plan<C>& plan) {
  return plan.groups * plan.weights;
}

// Weights, packed now or before, and the bias, in shared scratch.
template <class C, class D>
const C* bring_weights(Dense& d, const Plan<C>& plan) {
  C *weights, *bias;
  carve_scratch(Slot::shared, [&](Arena& arena) {
    weights = arena.take<C>(d.packed ? 0 : weight_elements(plan));
    return bias = arena.take<C>(d.bias ? plan.groups * plan.bias_row(d.out_c) : 0);
  });
  if (!d.packed) pack_weights<C, D>(d, plan, weights);
  if (d.bias) {
    widen_bias<C, D>(d, plan, bias);
    d.bias = bias;
  }
  return d.packed ? static_cast<const C*>(d.packed) : weights;
}

template <class D>
Plan<compute_t<D>> plan_of(const Dense& d) {
  return make_plan<compute_t<D>>(d, std::is_same_v<compute_t<D>, D>);
}

template <class D>
void gemm(const Dense& problem) {
  using C = compute_t<D>;
  Dense d = problem;
  const Plan<C> plan = plan_of<D>(d);
  const C* weights = bring_weights<C, D>(d, plan);
  const std::int64_t block_pixels = plan.most_pixels();
  const std::int64_t depth = plan.cut.depth();
  parallel_for(plan.tasks(), 1, [&](std::int64_t begin, std::int64_t end) {
    Task<C> t{};
    t.d = &d;
    t.plan = &plan;
    t.weights = weights;
    t.ldp = depth + kSlack<C>;
    t.buffered = tile_elements(d, plan, block_pixels);
    t.work = make_workspace<C>(d, plan, block_pixels, depth);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t pixel = i % plan.pixel_blocks, channel = i / plan.pixel_blocks % plan.channel_blocks;
      t.group0 = i / plan.pixel_blocks / plan.channel_blocks * plan.group_span;
      t.group1 = imin(plan.groups, t.group0 + plan.group_span);
      t.panel0 = channel * plan.panels / plan.channel_blocks;
      t.panel1 = (channel + 1) * plan.panels / plan.channel_blocks;
      t.pixel0 = plan.first_pixel(pixel);
      t.pixels = plan.first_pixel(pixel + 1) - t.pixel0;
      if (t.pixels > 0) run_task<C, D>(t);
    }
    if (plan.streamed) stream_fence();
  });
}

void run_gemm(const Dense& d) {
  dispatch(d.dtype, [&](auto tag) { gemm<decltype(tag)>(d); });
}

void run_by_input(const Params& p) { each_phase(p, run_gemm); }

std::int64_t gemm_packed_bytes(const Dense& d) {
  std::int64_t bytes = 0;
  dispatch(d.dtype, [&](auto tag) {
    using D = decltype(tag);
    bytes = weight_elements(plan_of<D>(d)) * std::int64_t(sizeof(compute_t<D>));
  });
  return bytes;
}

void gemm_pack(const Dense& d, void* out) {
  dispatch(d.dtype, [&](auto tag) {
    using D = decltype(tag);
    pack_weights<compute_t<D>, D>(d, plan_of<D>(d), static_cast<compute_t<D>*>(out));
  });
}

}  // namespace
}  // namespace convnorm::conv
