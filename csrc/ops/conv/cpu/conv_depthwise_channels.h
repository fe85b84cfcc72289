// Depthwise convolution with vectors over channels: NHWC, forward and by input.
//
//   for task = (image, output depth, block of rows):                    in parallel
//     for each row, each 7 columns, each vector of channels:            slide along w
//
// The image is read where it lies. Lines above and below it are left out, vectors beside it skipped.
//
// By input with a stride, the rows that a task writes are of several residues along h, and each row is of
// several phases along w.
//
// Include after conv_depthwise_plan.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kChannelTasks = 32;

template <class C, class D>
struct ChannelTile {
  const Line* line;
  std::int64_t lines;
  const D* source;
  std::int64_t pitch;  // to the next vector of a line
  const C* weight;     // a vector per tap
  std::int64_t taps;
  const D* bias;
  const D* residual;  // as dst, or null
  bool relu;
  D* dst;
  std::int64_t dst_pitch, outputs, channels;
};

// Stores outputs of the channels from c: plus the residual, then ReLU.
template <class C, class D>
[[gnu::noinline]] void store_finished(const ChannelTile<C, D>& t, std::int64_t c, const OutRows<C>& rows) {
  for (std::int64_t r = 0, at = c; r < t.outputs; ++r, at += t.dst_pitch) {
    vec<C> x = rows.row[r];
    if (t.residual) x += load(t.residual + at);
    store(t.dst + at, t.relu ? relu(x) : x);
  }
}

// The last vector of channels overlaps the one before it.
template <int K, int S, bool kEdges, bool kFinish, class C, class D>
void channel_tile(const ChannelTile<C, D>& t) {
  constexpr std::int64_t L = kLanes<C>;
  const std::int64_t dst_pitch = t.dst_pitch, outputs = t.outputs, channels = t.channels;
  const C* weight = t.weight;
  for (std::int64_t i = 0; i < channels; i += L, weight += t.taps * L) {
    const std::int64_t c = imin(i, channels - L);
    const vec<C> bias = t.bias ? load(t.bias + c) : vec<C>{};
    vec<C> acc[kOut];
    for (int r = 0; r < kOut; ++r) acc[r] = bias;
    slide<K, S, kEdges, C>(acc, t.line, t.lines, t.source + c, t.pitch,
                           [=](std::int64_t tap) { return load(weight + tap * L); });
    if constexpr (kFinish) {
      store_finished(t, c, copy_rows<C>(acc));
      continue;
    }
    D* to = t.dst + c;
    for (int r = 0; r < kOut; ++r, to += dst_pitch) {
      if (r >= outputs) break;
      __builtin_prefetch(to + kOut * dst_pitch, 1);  // the next tile's: stores to lines elsewhere would wait
      store(to, acc[r]);
    }
  }
}

template <bool kFinish, class C, class D>
void run_channel_tile(int kernel, bool edges, const ChannelTile<C, D>& t) {
  using Fn = void (*)(const ChannelTile<C, D>&);
  static constexpr Fn kTable[][2] = {
      {channel_tile<1, 1, false, kFinish, C, D>, channel_tile<1, 1, true, kFinish, C, D>},
      {channel_tile<3, 1, false, kFinish, C, D>, channel_tile<3, 1, true, kFinish, C, D>},
      {channel_tile<5, 1, false, kFinish, C, D>, channel_tile<5, 1, true, kFinish, C, D>},
      {channel_tile<7, 1, false, kFinish, C, D>, channel_tile<7, 1, true, kFinish, C, D>},
      {channel_tile<3, 2, false, kFinish, C, D>, channel_tile<3, 2, true, kFinish, C, D>},
      {channel_tile<5, 2, false, kFinish, C, D>, channel_tile<5, 2, true, kFinish, C, D>},
      {channel_tile<7, 2, false, kFinish, C, D>, channel_tile<7, 2, true, kFinish, C, D>}};
  kTable[kernel][edges](t);
}

// Outputs that are stored as they are have tiles of their own: any other use of them costs registers.
template <class C, class D>
void run_channel_tile(int kernel, bool edges, const ChannelTile<C, D>& t) {
  t.residual || t.relu ? run_channel_tile<true>(kernel, edges, t) : run_channel_tile<false>(kernel, edges, t);
}

// The lines over row oh that are inside the image.
template <class C>
std::int64_t list_lines(const Phase<C>& p, std::int64_t od, std::int64_t oh, Line* list) {
  const Axis *a = p.d.axis, &h = a[1], &w = a[2];
  const Inside ds = taps_inside(a[0], od), hs = taps_inside(h, oh);
  std::int64_t n = 0;
  for (std::int64_t td = ds.begin; td < ds.end; ++td)
    for (std::int64_t th = hs.begin; th < hs.end; ++th) {
      const std::int64_t row = (od * a[0].step + a[0].offset + td * a[0].offset_step) * a[0].source_stride +
                               (oh * h.step + h.offset + th * h.offset_step) * h.source_stride;
      for (std::int64_t tw = 0; tw < w.taps; tw += p.k) {
        const std::int64_t column = tw * w.offset_step;
        list[n++] = {row + column * w.source_stride, (td * h.taps + th) * w.taps + tw, column, 0, 0};
      }
    }
  return n;
}

// Which vectors of the lines are inside the image, for a tile whose first column is x; false if all are.
inline bool mark_edges(const Axis& w, int k, std::int64_t x, Line* line, std::int64_t lines) {
  if (x >= 0 && x + (kOut - 1) * w.step + reach_of(w) <= w.source) return false;
  for (std::int64_t l = 0; l < lines; ++l) {
    const Inside in = k == 1 ? inside(x + line[l].column, w.step, w.source, kOut)
                             : inside(x, 1, w.source, (kOut - 1) * w.step + k);
    line[l].begin = in.begin;
    line[l].end = in.end;
  }
  return true;
}

// Row oh of image n in one phase, tile by tile.
template <class D, class C>
void run_channel_row(const Phase<C>& p, std::int64_t n, std::int64_t od, std::int64_t oh, Line* line) {
  const Dense& d = p.d;
  const Axis& w = d.axis[2];
  const D* source = static_cast<const D*>(d.src) + n * d.src_n;
  D* dst = static_cast<D*>(d.dst) + n * d.dst_n + od * d.axis[0].out_stride + oh * d.axis[1].out_stride;
  ChannelTile<C, D> t{};
  t.line = line;
  t.lines = list_lines(p, od, oh, line);
  t.pitch = p.k == 1 ? w.step * w.source_stride : w.source_stride;
  t.taps = p.lines * p.k;
  t.weight = p.weight;
  t.bias = static_cast<const D*>(d.bias);
  t.relu = d.relu;
  t.dst_pitch = w.out_stride;
  t.outputs = imin(kOut, w.out);
  t.channels = d.groups;
  for (std::int64_t i = 0; i < w.out; i += kOut) {
    const std::int64_t o = imax(0, imin(i, w.out - kOut)), x = o * w.step + w.offset;
    t.source = source + x * w.source_stride;
    t.dst = dst + o * w.out_stride;
    t.residual = residual_at(d, t.dst);
    run_channel_tile(line_kernel(p.k, w.step), mark_edges(w, p.k, x, line, t.lines), t);
  }
}

// Each residue (forward: the problem) has its phases.
template <class D>
void run_channels(const Dense* problems, std::int64_t count, std::int64_t phases) {
  using C = compute_t<D>;
  const ChannelVectors<C> vectors{problems[0].groups};
  const std::int64_t residues = count / phases;
  Phases<C>* residue = nullptr;
  carve(Slot::shared, [&](Carver& memory) {
    residue = memory.take<Phases<C>>(residues);
    for (std::int64_t i = 0; i < residues; ++i) {
      Phases<C> p = join_phases<C>(problems + i * phases, phases);
      carve_phases<D, C>(p, problems + i * phases, 2, true, &vectors, memory);
      if (memory.base) residue[i] = p;
    }
  });
  std::int64_t lines = 0, height = 0, depth = 0;
  for (std::int64_t i = 0; i < residues; ++i) {
    height = imax(height, residue[i].d.axis[1].out);
    depth = imax(depth, residue[i].d.axis[0].out);
    for (std::int64_t f = 0; f < phases; ++f) lines = imax(lines, residue[i].phase[f].lines);
  }
  const std::int64_t planes = problems[0].n * depth;
  const std::int64_t rows = imin(height, ceil_div(planes * height, kChannelTasks)),
                     blocks = ceil_div(height, rows);
  parallel_for(planes * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    Line* line = static_cast<Line*>(scratch_bytes(Slot::local, lines * sizeof(Line)));
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t plane = task / blocks, od = plane % depth, row = task % blocks * rows;
      for (std::int64_t oh = row; oh < imin(height, row + rows); ++oh)
        for (std::int64_t i = 0; i < residues; ++i) {
          const Phases<C>& p = residue[i];
          if (od >= p.d.axis[0].out || oh >= p.d.axis[1].out) continue;
          for (std::int64_t f = 0; f < phases; ++f)
            run_channel_row<D>(p.phase[f], plane / depth, od, oh, line);
        }
    }
  });
}

}  // namespace
}  // namespace convnorm::conv
