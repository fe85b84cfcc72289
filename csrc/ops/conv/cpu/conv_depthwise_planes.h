// Depthwise convolution with vectors along rows: NCHW, and whatever is not NHWC; forward and by input.
//
//   for task = (image, channels, output depth, strip):        in parallel; for each residue of by input
//     pack the strip's source rows                            (L1; padding as zeros, the stride taken out)
//     for each 7 rows of it:  for each vector of columns:     slide along h
//
// Planes that fit a strip several times over are packed a few at a time: a load of what has just been stored
// piece by piece would wait. Narrow rows are stored as whole vectors whose ends the next row overwrites. Low,
// wide problems (1d) take 7 vectors of one row in place of 7 rows.
//
// By input with a stride makes each row of several phases. These, and outputs that are not next to each
// other, go through a stage of 7 rows. Residues along h write the rows of a strip in turns, while its lines
// are in cache.
//
// Include after conv_depthwise_strip.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kPlaneBytes = 20 << 10;  // of a packed strip
inline constexpr std::int64_t kPlaneColumns = 256;
inline constexpr std::int64_t kMostPlanes = 8;  // packed at a time

template <class C, class D>
struct PlaneTile {
  const Line* line;
  std::int64_t lines;
  const C* source;
  std::int64_t pitch;  // from one source vector of a line to the next
  const C* weight;
  C bias;
  const D* residual;  // as dst, or null
  bool relu;
  D* dst;
  std::int64_t dst_pitch, outputs, columns;
  const D* end;  // narrow rows: up to where vectors may be stored
};

// Stores outputs of the columns from `at`: plus the residual, then ReLU.
template <class C, class D>
[[gnu::noinline]] void store_finished(const PlaneTile<C, D>& t, std::int64_t at, const OutRows<C>& rows) {
  constexpr int L = kLanes<C>;
  for (std::int64_t r = 0; r < t.outputs; ++r, at += t.dst_pitch) {
    const bool whole = t.columns >= L || t.dst + at + L <= t.end;
    vec<C> x = rows.row[r];
    if (t.residual) x += whole ? load(t.residual + at) : load_n(t.residual + at, t.columns);
    if (t.relu) x = relu(x);
    whole ? store(t.dst + at, x) : store_n(t.dst + at, x, t.columns);
  }
}

// Outputs are rows; the last vector of columns overlaps the one before it.
template <int K, int S, bool kFinish, class C, class D>
void plane_tile(const PlaneTile<C, D>& t) {
  constexpr int L = kLanes<C>;
  const C* weight = t.weight;
  const std::int64_t columns = t.columns, dst_pitch = t.dst_pitch, outputs = t.outputs;
  const bool wide = columns > 8 * L;
  const vec<C> bias = splat<C>(t.bias);
  for (std::int64_t x = 0; x < columns; x += L) {
    const std::int64_t at = columns < L ? 0 : imin(x, columns - L);
    vec<C> acc[kOut];
    for (int r = 0; r < kOut; ++r) acc[r] = bias;
    slide<K, S, false, C>(acc, t.line, t.lines, t.source + at, t.pitch,
                          [=](std::int64_t i) { return splat<C>(weight[i]); });
    if constexpr (kFinish) {
      store_finished(t, at, copy_rows<C>(acc));
      continue;
    }
    D* to = t.dst + at;
    for (int r = 0; r < kOut; ++r, to += dst_pitch) {
      if (r >= outputs) break;
      if (wide)
        __builtin_prefetch(to + kOut * dst_pitch, 1);  // stores to lines that are elsewhere would wait
      if (columns >= L || to + L <= t.end)
        store(to, acc[r]);
      else
        store_n(to, acc[r], columns);
    }
  }
}

template <bool kFinish, class C, class D>
void run_plane_tile(int kernel, const PlaneTile<C, D>& t) {
  using Fn = void (*)(const PlaneTile<C, D>&);
  static constexpr Fn kTable[] = {plane_tile<1, 1, kFinish, C, D>, plane_tile<3, 1, kFinish, C, D>,
                                  plane_tile<5, 1, kFinish, C, D>, plane_tile<7, 1, kFinish, C, D>,
                                  plane_tile<3, 2, kFinish, C, D>, plane_tile<5, 2, kFinish, C, D>,
                                  plane_tile<7, 2, kFinish, C, D>};
  kTable[kernel](t);
}

// Outputs that are stored as they are have tiles of their own: any other use of them costs registers.
template <class C, class D>
void run_plane_tile(int kernel, const PlaneTile<C, D>& t) {
  t.residual || t.relu ? run_plane_tile<true>(kernel, t) : run_plane_tile<false>(kernel, t);
}

// How the problems of one residue (forward: the problem) are computed.
template <class C>
struct PlanePlan {
  Phases<C> phases;
  Strips strips;
  bool along;         // 7 vectors of a row, not 7 rows
  bool staged;        // outputs are put together in a stage
  std::int64_t unit;  // distance of outputs of neighbouring phases
  std::int64_t stage_pitch;
};

template <class C>
PlanePlan<C> plan_planes(const Dense* problems, std::int64_t phases) {
  PlanePlan<C> plan{join_phases<C>(problems, phases)};
  const Phases<C>& p = plan.phases;
  const Axis &h = p.d.axis[1], &w = p.d.axis[2];
  plan.along = h.out < kOut / 2 && p.width >= 2 * kLanes<C>;
  plan.staged = phases > 1 || w.out_stride != 1;
  plan.unit = w.out_stride;
  if (phases > 1)
    plan.unit = (static_cast<const char*>(problems[1].dst) - static_cast<const char*>(problems[0].dst)) /
                bytes(p.d.dtype);
  plan.strips = make_strips<C>(p.d, p.width, p.first, p.reach,
                               {plan.along ? 1 : kOut, kLanes<C>, h.out, kPlaneColumns, kPlaneBytes});
  plan.stage_pitch = (ceil_div(plan.strips.columns, kLanes<C>) + 1) * kLanes<C>;
  return plan;
}

template <class C>
void list_plane_lines(Phase<C>& p, const Strips& strips) {
  TapOrder{1, p.k}.each(p.d, [&](std::int64_t at, std::int64_t td, std::int64_t th, std::int64_t tw) {
    if (at % p.k == 0) p.line[at / p.k] = {packed_tap(p.d, strips, td, th, tw), at, 0, 0, 0};
  });
}

// A strip of one plane.
template <class C>
struct PlaneJob {
  const PlanePlan<C>* plan;
  Strip strip;
  std::int64_t n, c;
  const C* packed;
  C* stage;  // kOut rows for each phase, and a row of all
};

// The tiles of one row: 7 vectors, and at its end one that overlaps them.
template <class C, class To>
void run_along(PlaneTile<C, To> t, std::int64_t columns) {
  constexpr std::int64_t L = kLanes<C>;
  const C* source = t.source;
  const To* residual = t.residual;
  To* dst = t.dst;
  t.pitch = t.dst_pitch = L;
  for (std::int64_t x = 0; x < columns; x += t.outputs * L) {
    const std::int64_t at = imax(0, imin(x, columns - L));
    t.outputs = imax(1, imin(kOut, (columns - x) / L));
    t.columns = imin(L, columns);
    t.source = source + at;
    t.residual = residual ? residual + at : nullptr;
    t.dst = dst + at;
    run_plane_tile(0, t);
  }
}

// Rows [y, y + rows) of the strip in one phase. Up to `end` vectors may be stored where rows are narrower.
template <class D, class C, class To>
void run_plane_rows(const PlaneJob<C>& job, const Phase<C>& p, std::int64_t y, std::int64_t rows,
                    std::int64_t columns, To* dst, std::int64_t dst_pitch, const To* end) {
  const PlanePlan<C>& plan = *job.plan;
  const Dense& d = plan.phases.d;
  const Inside depth = taps_inside(p.d.axis[0], job.strip.od);
  const std::int64_t pitch = plan.strips.shape.pitch(), step = d.axis[1].step * pitch;
  PlaneTile<C, To> t{};
  t.line = p.line + depth.begin * p.depth_lines;
  t.lines = (depth.end - depth.begin) * p.depth_lines;
  t.weight = p.weight + job.c * p.lines * p.k;
  t.bias = d.bias ? load1(static_cast<const D*>(d.bias) + job.c) : C(0);
  t.end = end;
  t.dst_pitch = dst_pitch;
  t.outputs = rows;
  t.columns = columns;
  t.pitch = p.k == 1 ? step : pitch;
  t.source = job.packed + y * step;
  t.residual = plan.staged ? nullptr : residual_at(d, dst);
  t.relu = !plan.staged && d.relu;
  t.dst = dst;
  if (!plan.along) return run_plane_tile(line_kernel(p.k, p.d.axis[1].step), t);
  for (std::int64_t r = 0; r < rows; ++r, t.source += step, t.dst += dst_pitch) {
    if (r > 0 && t.residual) t.residual += dst_pitch;
    run_along(t, columns);
  }
}

// A row of the stage, plus the residual of the elements that it goes to, then ReLU: of forward, which has one
// phase.
template <class D, class C>
[[gnu::noinline]] void finish_row(const Dense& d, C* row, std::int64_t n, const D* dst, std::int64_t stride) {
  const D* residual = residual_at(d, dst);
  for (std::int64_t i = 0; i < n; ++i) {
    if (residual) row[i] += load1(residual + i * stride);
    if (d.relu && row[i] < 0) row[i] = 0;
  }
}

// Rows [y, y + rows) of the strip, through the stage.
template <class D, class C>
void run_staged_rows(const PlaneJob<C>& job, std::int64_t y, std::int64_t rows, D* dst) {
  const PlanePlan<C>& plan = *job.plan;
  const Phases<C>& phases = plan.phases;
  const std::int64_t pitch = plan.stage_pitch;
  const auto columns = [&](std::int64_t f) {
    return imin(job.strip.columns, phases.phase[f].d.axis[2].out - job.strip.x);
  };
  for (std::int64_t f = 0; f < phases.count; ++f) {
    const std::int64_t whole = ceil_div(columns(f), kLanes<C>) * kLanes<C>;
    run_plane_rows<D, C, C>(job, phases.phase[f], y, rows, whole, job.stage + f * kOut * pitch, pitch,
                            nullptr);
  }
  C* row = job.stage + phases.count * kOut * pitch;
  for (std::int64_t r = 0; r < rows; ++r, dst += phases.d.axis[1].out_stride) {
    C* stage = job.stage + r * pitch;
    if (phases.d.residual || phases.d.relu)
      finish_row(phases.d, stage, columns(0), dst, phases.d.axis[2].out_stride);
    if (phases.count == 2 && plan.unit == 1) {
      write_phases(stage, stage + kOut * pitch, columns(0) + columns(1), row, dst);
      continue;
    }
    for (std::int64_t f = 0; f < phases.count; ++f)
      write_out(stage + f * kOut * pitch, columns(f), dst + f * plan.unit, phases.d.axis[2].out_stride);
  }
}

template <class D, class C>
void run_strip(const PlaneJob<C>& job) {
  const PlanePlan<C>& plan = *job.plan;
  const Strip& s = job.strip;
  const Dense& d = plan.phases.d;
  const Axis &h = d.axis[1], &w = d.axis[2];
  D* dst = static_cast<D*>(plan.phases.phase[0].d.dst) + job.n * d.dst_n + job.c * d.dst_c +
           s.od * d.axis[0].out_stride + s.y * h.out_stride + s.x * w.out_stride;
  const D* end = h.out_stride == s.columns ? dst + s.rows * s.columns : dst;
  for (std::int64_t y = 0; y < s.rows; y += kOut) {
    const std::int64_t rows = imin(kOut, s.rows - y);
    D* to = dst + y * h.out_stride;
    if (plan.staged)
      run_staged_rows<D>(job, y, rows, to);
    else
      run_plane_rows<D>(job, plan.phases.phase[0], y, rows, s.columns, to, h.out_stride, end);
  }
}

// All residues, and how they are cut into tasks: strip number i of each, of some planes.
template <class C>
struct PlaneTasks {
  PlanePlan<C>* plan;
  std::int64_t count;
  std::int64_t planes, plane_blocks;  // packed at a time; of an image
  std::int64_t depth, strips;         // at most
  std::int64_t packed, stage;         // elements of a task's memory

  std::int64_t tasks() const { return plan[0].phases.d.n * plane_blocks * depth * strips; }
};

template <class C>
void cut_planes(PlaneTasks<C>& t) {
  const std::int64_t groups = t.plan[0].phases.d.groups;
  t.planes = imin(kMostPlanes, groups);
  t.depth = t.strips = 0;
  for (std::int64_t i = 0; i < t.count; ++i) {
    const PlanePlan<C>& p = t.plan[i];
    const std::int64_t fit = kPlaneBytes / (p.strips.size * static_cast<std::int64_t>(sizeof(C)));
    t.planes = p.strips.count() > 1 ? 1 : imax(1, imin(fit, t.planes));
    t.depth = imax(t.depth, p.phases.d.axis[0].out);
    t.strips = imax(t.strips, p.strips.count());
  }
  t.plane_blocks = ceil_div(groups, t.planes);
  t.packed = t.stage = 0;
  for (std::int64_t i = 0; i < t.count; ++i) {
    const PlanePlan<C>& p = t.plan[i];
    t.packed = imax(t.packed, t.planes * p.strips.size);
    t.stage = imax(t.stage, (p.phases.count * kOut + 2) * p.stage_pitch);
  }
}

// Strip number `strip` of planes [c0, c1) of image n, which are all packed first.
template <class D, class C>
void run_planes_strip(const PlanePlan<C>& plan, std::int64_t n, std::int64_t c0, std::int64_t c1,
                      std::int64_t od, std::int64_t strip, PackedStrips<C>& packed, C* stage) {
  const Dense& d = plan.phases.d;
  PlaneJob<C> job{&plan, strip_at(plan.strips, d, od, strip), n, c0, packed.data, stage};
  const D* source = static_cast<const D*>(d.src);
  const D* end = source + source_elements(d);
  packed.prepare(plan.strips, job.strip);
  for (std::int64_t c = c0; c < c1; ++c)
    pack_strip(d, plan.strips, job.strip, source + n * d.src_n + c * d.src_c, end,
               packed.data + (c - c0) * plan.strips.size);
  for (; job.c < c1; ++job.c, job.packed += plan.strips.size) run_strip<D>(job);
}

template <class D>
void run_planes(const Dense* problems, std::int64_t count, std::int64_t phases) {
  using C = compute_t<D>;
  PlaneTasks<C> t{};
  t.count = count / phases;
  carve(Slot::shared, [&](Carver& memory) {
    t.plan = memory.take<PlanePlan<C>>(t.count);
    for (std::int64_t i = 0; i < t.count; ++i) {
      PlanePlan<C> plan = plan_planes<C>(problems + i * phases, phases);
      carve_phases<D, C>(plan.phases, problems + i * phases, 1, !plan.along, nullptr, memory);
      if (memory.base) t.plan[i] = plan;
    }
  });
  for (std::int64_t i = 0; i < t.count; ++i)
    for (std::int64_t f = 0; f < phases; ++f) list_plane_lines(t.plan[i].phases.phase[f], t.plan[i].strips);
  cut_planes(t);
  parallel_for(t.tasks(), 1, [&](std::int64_t begin, std::int64_t end) {
    C *memory = nullptr, *stage = nullptr;
    carve(Slot::local, [&](Carver& carver) {
      memory = carver.take<C>(t.packed + 8 * kLanes<C>);
      stage = carver.take<C>(t.stage + 2 * kLanes<C>);
    });
    PackedStrips<C> packed{memory, t.packed};
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t strip = i % t.strips, od = i / t.strips % t.depth, block = i / t.strips / t.depth;
      const std::int64_t c = block % t.plane_blocks * t.planes;
      for (std::int64_t j = 0; j < t.count; ++j) {
        const PlanePlan<C>& plan = t.plan[j];
        if (od >= plan.phases.d.axis[0].out || strip >= plan.strips.count()) continue;
        if (t.count > 1) packed.forget();
        run_planes_strip<D>(plan, block / t.plane_blocks, c, imin(plan.phases.d.groups, c + t.planes), od,
                            strip, packed, stage);
      }
    }
  });
}

}  // namespace
}  // namespace convnorm::conv
