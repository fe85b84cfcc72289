// Depthwise by weight with vectors along rows: NCHW, and whatever is not NHWC.
//
//   task = (channel, share of its strips):         in parallel
//     for each strip:  pack its source and gout
//       for each few lines of taps:  add up over the strip, a sum per lane
//     add up lanes
//
// Places are vectors of columns, lines lie along h. Shares are cut by shape alone, and added in order when
// the weights are written. Bias sums are short float sums joined in double.
//
// Include after conv_depthwise_strip.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kWantedShares = 16;           // tasks, at least, where there is work for them
inline constexpr std::int64_t kWeighPlaneBytes = 24 << 10;  // of packed strips

// Lines that are summed together: as many sums as hide the latency of FMAs and fit registers.
inline int lines_together(int k) { return k == 1 ? 5 : k == 3 ? 3 : 2; }

// f(line, lines) for all of [begin, end).
template <class F>
inline void each_line_group(int k, std::int64_t begin, std::int64_t end, F&& f) {
  for (std::int64_t l = begin; l < end;) {
    const int lines = end - l >= lines_together(k) ? lines_together(k) : 1;
    f(l, lines);
    l += lines;
  }
}

template <bool kPartial, class C, class X>
void run_weigh(int k, bool together, const Weigh<C, X>& job) {
  using Fn = void (*)(const Weigh<C, X>&);
  static constexpr Fn kTable[][2] = {{weigh<1, 1, kPartial, C, X>, weigh<1, 5, kPartial, C, X>},
                                     {weigh<3, 1, kPartial, C, X>, weigh<3, 3, kPartial, C, X>},
                                     {weigh<5, 1, kPartial, C, X>, weigh<5, 2, kPartial, C, X>},
                                     {weigh<7, 1, kPartial, C, X>, weigh<7, 2, kPartial, C, X>}};
  kTable[k / 2][together](job);
}

// What tasks sum up: of each share, of each item (a channel, or a vector of channels), `taps` times `lanes`
// sums, and `lanes` sums of gout.
template <class C>
struct Shares {
  C* sums;
  double* bias;
  std::int64_t count, items, taps, lanes;

  C* sums_of(std::int64_t share, std::int64_t item) const {
    return sums + (share * items + item) * taps * lanes;
  }
  double* bias_of(std::int64_t share, std::int64_t item) const {
    return bias + (share * items + item) * lanes;
  }
  void take(Carver& memory) {
    sums = memory.take<C>(count * items * taps * lanes);
    bias = memory.take<double>(count * items * lanes);
  }
};

// Writes the weights and the bias of channel c, which is lane `lane` of an item.
template <class D, class C>
void write_channel(const Dense& d, const Shares<C>& shares, TapOrder order, std::int64_t c, std::int64_t item,
                   std::int64_t lane) {
  D* weight = static_cast<D*>(d.weight) + c * d.weight_group;
  const C* sums = shares.sums_of(0, item) + lane;
  order.each(d, [&](std::int64_t at, std::int64_t td, std::int64_t th, std::int64_t tw) {
    C sum = sums[at * shares.lanes];
    for (std::int64_t s = 1; s < shares.count; ++s)
      sum += sums[(s * shares.items * shares.taps + at) * shares.lanes];
    store1(weight + weight_offset(d, td, th, tw), sum);
  });
  if (!d.bias) return;
  double sum = 0;
  for (std::int64_t s = 0; s < shares.count; ++s) sum += shares.bias_of(s, item)[lane];
  store1(static_cast<D*>(d.bias) + c, static_cast<C>(sum));
}

// --- vectors along rows

template <class C>
struct PlaneWeigh {
  Dense d;
  TapOrder order;
  std::int64_t lines, depth_lines;
  std::int64_t* line;
  Strips strips;
  PackedRow gout;             // rows of a packed strip of gout
  Strip* strip;               // of an image
  std::int64_t image_strips;  // so many
  std::int64_t together;      // strips that are packed at a time
  std::int64_t source_elements, gout_elements;
  Shares<C> shares;

  std::int64_t units() const { return d.n * image_strips; }
  std::int64_t gout_size() const { return strips.rows * gout.pitch(); }
};

// What a task works with: packed strips, and a vector of sums per tap.
template <class C>
struct PlaneWeighWork {
  PackedStrips<C> source, gout;
  C* sums;
};

// Adds up a piece of each of some packed strips, at(strip).
template <bool kPartial, class C, class F>
void weigh_pieces(int k, bool together, Weigh<C, C>& job, std::int64_t strips, F&& at) {
  Piece list[kMostPlanes];
  for (std::int64_t i = 0; i < strips; ++i) list[i] = at(i);
  job.piece = list;
  job.pieces = strips;
  run_weigh<kPartial>(k, together, job);
}

// The sums of `strips` packed strips for some lines: their whole vectors of columns run along the longer
// side; then comes the vector that the last columns fill in part.
template <class C>
void weigh_lines(const PlaneWeigh<C>& plan, const Strip& s, std::int64_t strips, int lines, Weigh<C, C> job) {
  constexpr std::int64_t L = kLanes<C>;
  const int k = plan.order.k;
  const std::int64_t gout_row = plan.gout.pitch(), gout_size = plan.gout_size(), size = plan.strips.size;
  const std::int64_t source_row = plan.d.axis[1].step * plan.strips.shape.pitch();
  const std::int64_t vectors = s.columns / L, rest = s.columns % L;
  const bool along = vectors > s.rows;
  const std::int64_t runs = along ? s.rows : vectors, count = along ? vectors : s.rows;
  const std::int64_t gout_next = along ? gout_row : L, source_next = along ? source_row : L;
  job.gout_step = along ? L : gout_row;
  job.source_step = along ? L : source_row;
  for (std::int64_t r = 0; r < runs; ++r)
    weigh_pieces<false>(k, lines > 1, job, strips, [&](std::int64_t i) {
      return Piece{i * gout_size + r * gout_next, i * size + r * source_next, count, all_taps(k * lines)};
    });
  if (rest == 0) return;
  job.gout_step = gout_row;
  job.source_step = source_row;
  job.lanes = lanes_below<C>(rest);
  weigh_pieces<true>(k, lines > 1, job, strips, [&](std::int64_t i) {
    return Piece{i * gout_size + vectors * L, i * size + vectors * L, s.rows, 0};
  });
}

// The sum of a packed strip of gout.
template <class C>
double sum_gout(const C* gout, std::int64_t pitch, const Strip& s) {
  Wide<C> sum{};
  for (std::int64_t r = 0; r < s.rows; ++r, gout += pitch) {
    vec<C> part{};
    for (std::int64_t x = 0; x < s.columns; x += kLanes<C>) part += load(gout + x);
    const Wide<C> wide = widen(part);
    for (int i = 0; i < Wide<C>::kParts; ++i) sum.part[i] += wide.part[i];
  }
  double total = 0;
  for (int i = 0; i < Wide<C>::kParts; ++i) total += lane_sum<double>(sum.part[i]);
  return total;
}

// Packs the source and gout of a strip of channel c of image n, as number i of several.
template <class D, class C>
void pack_weigh_strip(const PlaneWeigh<C>& plan, const Strip& s, std::int64_t n, std::int64_t c,
                      std::int64_t i, const PlaneWeighWork<C>& work) {
  const Dense& d = plan.d;
  const Axis &h = d.axis[1], &w = d.axis[2];
  const D *source = static_cast<const D*>(d.src), *gout = static_cast<const D*>(d.dst);
  pack_strip(d, plan.strips, s, source + n * d.src_n + c * d.src_c, source + plan.source_elements,
             work.source.data + i * plan.strips.size);
  const Rows<D> rows{gout + n * d.dst_n + c * d.dst_c + s.od * d.axis[0].out_stride + s.y * h.out_stride +
                         s.x * w.out_stride,
                     gout + plan.gout_elements,
                     s.rows,
                     h.out_stride,
                     s.columns,
                     w.out_stride,
                     0};
  pack_rows(rows, work.gout.data + i * plan.gout_size(), plan.gout);
}

// The sums of lanes of n vectors, a square of vectors at a time.
template <class C>
void lane_sums(const C* vectors, std::int64_t n, C* sums) {
  constexpr int L = kLanes<C>;
  std::int64_t i = 0;
  for (; i + L <= n; i += L) {
    vec<C> square[L];
    for (int j = 0; j < L; ++j) square[j] = load(vectors + (i + j) * L);
    transpose<C>(square);
    for (int half = L / 2; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) square[j] += square[j + half];
    store(sums + i, square[0]);
  }
  for (; i < n; ++i) sums[i] = lane_sum<C>(load(vectors + i * L));
}

// Units [begin, end) of channel c to sums and, returned, the sum of gout. Where a plane is one strip, several
// images are packed before the first is summed: a load of what has just been stored piece by piece would
// wait.
template <class D, class C>
double weigh_plane(const PlaneWeigh<C>& plan, std::int64_t c, std::int64_t begin, std::int64_t end,
                   PlaneWeighWork<C>& work) {
  const int k = plan.order.k;
  double bias = 0;
  std::int64_t n = begin / plan.image_strips, strip = begin % plan.image_strips;
  for (std::int64_t u = begin; u < end;) {
    const Strip& s = plan.strip[strip];
    const std::int64_t strips = imin(plan.together, end - u);
    work.source.prepare(plan.strips, s);
    if (s.columns != work.gout.last.columns) clear(work.gout.data, work.gout.size);
    work.gout.last = s;
    for (std::int64_t i = 0; i < strips; ++i) pack_weigh_strip<D>(plan, s, n + i, c, i, work);
    for (std::int64_t i = 0; plan.d.bias && i < strips; ++i)
      bias += sum_gout(work.gout.data + i * plan.gout_size(), plan.gout.pitch(), s);
    const Inside taps = taps_inside(plan.d.axis[0], s.od);
    Weigh<C, C> job{};
    job.gout = work.gout.data;
    job.source = work.source.data;
    job.pitch = plan.d.axis[1].offset_step * plan.strips.shape.pitch();
    each_line_group(k, taps.begin * plan.depth_lines, taps.end * plan.depth_lines,
                    [&](std::int64_t l, int lines) {
                      job.line = plan.line + l;
                      job.sums = work.sums + l * k * kLanes<C>;
                      weigh_lines(plan, s, strips, lines, job);
                    });
    u += strips;
    strip += plan.image_strips == 1 ? 0 : 1;
    n += plan.image_strips == 1 ? strips : 0;
    if (strip == plan.image_strips) strip = 0, ++n;
  }
  return bias;
}

template <class D>
void weigh_planes(const Dense& d) {
  using C = compute_t<D>;
  constexpr std::int64_t L = kLanes<C>;
  const Axis& w = d.axis[2];
  PlaneWeigh<C> plan{d, {1, line_taps(d.axis[1], true)}};
  plan.lines = taps_of(d) / plan.order.k;
  plan.depth_lines = plan.lines / d.axis[0].taps;
  plan.strips =
      make_strips<C>(d, w.out, w.offset, reach_of(w), {1, L, kPlaces, kPlaneColumns, kWeighPlaneBytes});
  plan.gout = {1, ceil_div(plan.strips.columns, L) * L};
  plan.image_strips = d.axis[0].out * plan.strips.count();
  const std::int64_t fit =
      kWeighPlaneBytes / ((plan.strips.size + plan.gout_size()) * static_cast<std::int64_t>(sizeof(C)));
  plan.together = plan.image_strips > 1 ? 1 : imax(1, imin(fit, kMostPlanes));
  plan.source_elements = source_elements(d);
  plan.gout_elements = dst_elements(d);
  const std::int64_t shares = imax(1, imin(ceil_div(kWantedShares, d.groups), plan.units()));
  plan.shares = {nullptr, nullptr, shares, d.groups, taps_of(d), 1};
  carve(Slot::shared, [&](Carver& memory) {
    plan.line = memory.take<std::int64_t>(plan.lines);
    plan.strip = memory.take<Strip>(plan.image_strips);
    plan.shares.take(memory);
  });
  plan.order.each(d, [&](std::int64_t at, std::int64_t td, std::int64_t th, std::int64_t tw) {
    if (at % plan.order.k == 0) plan.line[at / plan.order.k] = packed_tap(d, plan.strips, td, th, tw);
  });
  for (std::int64_t i = 0; i < plan.image_strips; ++i)
    plan.strip[i] = strip_at(plan.strips, d, i / plan.strips.count(), i % plan.strips.count());
  parallel_for(d.groups * shares, 1, [&](std::int64_t begin, std::int64_t end) {
    PlaneWeighWork<C> work{
        {nullptr, plan.together * plan.strips.size}, {nullptr, plan.together * plan.gout_size()}, nullptr};
    carve(Slot::local, [&](Carver& memory) {
      work.source.data = memory.take<C>(work.source.size + 2 * L);
      work.gout.data = memory.take<C>(work.gout.size + 2 * L);
      work.sums = memory.take<C>(plan.shares.taps * L);
    });
    const std::int64_t units = plan.units();
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t c = i / shares, share = i % shares;
      clear(work.sums, plan.shares.taps * L);
      *plan.shares.bias_of(share, c) =
          weigh_plane<D>(plan, c, units * share / shares, units * (share + 1) / shares, work);
      lane_sums(work.sums, plan.shares.taps, plan.shares.sums_of(share, c));
    }
  });
  parallel_for(d.groups, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) write_channel<D>(d, plan.shares, plan.order, c, c, 0);
  });
}

}  // namespace
}  // namespace convnorm::conv
