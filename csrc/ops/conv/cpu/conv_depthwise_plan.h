// What all depthwise kernels need of a problem: taps in ascending order, lines of taps, weights in their
// order.
//
// Include after conv_depthwise_slide.h.
#pragma once

namespace convnorm::conv {
namespace {

// Tap t of every axis reads behind tap t - 1 (by input has them the other way round).
inline Dense ascending(Dense d) {
  std::int64_t weight = 0;
  for (Axis& a : d.axis) {
    if (a.offset_step >= 0 || a.taps == 0) continue;
    weight += (a.taps - 1) * a.weight_step;
    a.offset += (a.taps - 1) * a.offset_step;
    a.offset_step = -a.offset_step;
    a.weight_step = -a.weight_step;
  }
  d.weight = static_cast<char*>(d.weight) + weight * bytes(d.dtype);
  return d;
}

inline std::int64_t taps_of(const Dense& d) { return d.axis[0].taps * d.axis[1].taps * d.axis[2].taps; }

// From the first tap's position to behind the last one's.
inline std::int64_t reach_of(const Axis& a) { return imax(1, (a.taps - 1) * a.offset_step + 1); }

// The taps of an axis that are a line with a kernel of its own, or 1.
inline int line_taps(const Axis& a, bool any_step) {
  const bool has_kernel = a.taps == 3 || a.taps == 5 || a.taps == 7;
  return has_kernel && (any_step || (a.offset_step == 1 && a.step <= 2)) ? static_cast<int>(a.taps) : 1;
}

// Row of a table of kernels: of single taps, then lines of 3, 5, 7 at step 1 and at step 2.
inline int line_kernel(int k, std::int64_t step) { return k == 1 ? 0 : k / 2 + (step == 2 ? 3 : 0); }

// The order in which the taps of a window are stored and walked: by depth, then lines, then within a line.
// Lines along h are ordered by w; along w, and for single taps, the order is that of the window.
struct TapOrder {
  int axis, k;  // along which lines lie, and their taps

  // f(position in the order, td, th, tw)
  template <class F>
  void each(const Dense& d, F&& f) const {
    const std::int64_t kh = d.axis[1].taps, kw = d.axis[2].taps;
    const bool by_columns = axis == 1 && k > 1;
    for (std::int64_t td = 0; td < d.axis[0].taps; ++td)
      for (std::int64_t th = 0; th < kh; ++th)
        for (std::int64_t tw = 0; tw < kw; ++tw)
          f(td * kh * kw + (by_columns ? tw * kh + th : th * kw + tw), td, th, tw);
  }
};

inline std::int64_t weight_offset(const Dense& d, std::int64_t td, std::int64_t th, std::int64_t tw) {
  return td * d.axis[0].weight_step + th * d.axis[1].weight_step + tw * d.axis[2].weight_step;
}

// The range of outputs [begin, end) for which coordinate o * step + first is inside [0, source).
struct Inside {
  std::int64_t begin, end;
};
inline Inside inside(std::int64_t first, std::int64_t step, std::int64_t source, std::int64_t outputs) {
  const auto steps = [step](std::int64_t n) {
    return step == 1 ? n : ceil_div(n, step);
  };  // divisions are slow
  const std::int64_t begin = first < 0 ? imin(outputs, steps(-first)) : 0;
  const std::int64_t end = first < source ? imin(outputs, steps(source - first)) : 0;
  return {begin, imax(begin, end)};
}

// The taps that are inside the image for output o.
inline Inside taps_inside(const Axis& a, std::int64_t o) {
  return inside(o * a.step + a.offset, imax(a.offset_step, 1), a.source, a.taps);
}

// n in equal pieces of at most `most`, in units.
inline std::int64_t piece_of(std::int64_t n, std::int64_t most, std::int64_t unit) {
  const std::int64_t pieces = ceil_div(n, imax(most / unit * unit, unit));
  return imin(n, ceil_div(ceil_div(n, pieces), unit) * unit);
}

// Elements from the first to the last of the two images: how far they may be read.
inline std::int64_t source_elements(const Dense& d) {
  std::int64_t last = (d.n - 1) * d.src_n + (d.groups - 1) * d.src_c;
  for (const Axis& a : d.axis) last += (a.source - 1) * a.source_stride;
  return last + 1;
}
inline std::int64_t dst_elements(const Dense& d) {
  std::int64_t last = (d.n - 1) * d.dst_n + (d.groups - 1) * d.dst_c;
  for (const Axis& a : d.axis) last += (a.out - 1) * a.out_stride;
  return last + 1;
}

// Channels as vectors; the last one may overlap the one before it.
template <class C>
struct ChannelVectors {
  std::int64_t channels;
  std::int64_t count() const { return ceil_div(channels, kLanes<C>); }
  std::int64_t first(std::int64_t v) const { return imin(v * kLanes<C>, channels - kLanes<C>); }
};

// Vectors over channels need rows of channels at least a vector long.
template <class C>
bool channels_are_rows(const Dense& d) {
  return d.src_c == 1 && d.dst_c == 1 && d.groups >= kLanes<C>;
}

// Work memory cut into pieces at cache lines. Without memory it adds up the size.
struct Carver {
  char* base = nullptr;
  std::size_t used = 0;
  template <class T>
  T* take(std::int64_t n) {
    T* at = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (n * sizeof(T) + 63) / 64 * 64;
    return at;
  }
};

// f(carver) is called twice, first for the size.
template <class F>
inline void carve(Slot slot, F&& f) {
  Carver size;
  f(size);
  Carver memory{static_cast<char*>(scratch_bytes(slot, size.used))};
  f(memory);
}

// The phases of a problem: along w they differ in taps, offset and number of outputs.
template <class C>
struct Phase {
  Dense d;                                     // taps ascending
  int k;                                       // taps of a line
  std::int64_t lines, depth_lines, row_lines;  // in all; of one tap along depth; of one along depth and h
  Line* line;                                  // NCHW: filled in by conv_depthwise_planes.h
  C* weight;
};

template <class C>
struct Phases {
  Phase<C>* phase;
  std::int64_t count;
  Dense d;                           // of one that has taps, if any has
  std::int64_t first, reach, width;  // columns of all taps; outputs of the longest
};

template <class C>
Phases<C> join_phases(const Dense* problems, std::int64_t count) {
  Phases<C> p{nullptr, count, ascending(problems[0]), 0, 1, 0};
  bool any = false;
  std::int64_t end = 1;
  for (std::int64_t f = 0; f < count; ++f) {
    const Dense d = ascending(problems[f]);
    const Axis& w = d.axis[2];
    p.width = imax(p.width, w.out);
    if (taps_of(d) == 0) continue;
    p.first = any ? imin(p.first, w.offset) : w.offset;
    end = any ? imax(end, w.offset + reach_of(w)) : w.offset + reach_of(w);
    p.d = d;
    any = true;
  }
  p.reach = imax(1, end - p.first);
  return p;
}

// Takes the phases and their weights from memory and fills them in: the weights of one channel after the
// other, or of vectors of channels. Lines lie along an axis, or are single taps.
template <class D, class C>
void carve_phases(Phases<C>& p, const Dense* problems, int axis, bool lines, const ChannelVectors<C>* vectors,
                  Carver& memory) {
  p.phase = memory.take<Phase<C>>(p.count);
  const std::int64_t lanes = vectors ? kLanes<C> : 1, blocks = vectors ? vectors->count() : p.d.groups;
  for (std::int64_t f = 0; f < p.count; ++f) {
    Phase<C> phase{ascending(problems[f])};
    const Dense& d = phase.d;
    const std::int64_t taps = taps_of(d);
    phase.k = lines ? line_taps(d.axis[axis], false) : 1;
    phase.lines = taps / phase.k;
    phase.depth_lines = phase.lines / imax(1, d.axis[0].taps);
    phase.row_lines = phase.depth_lines / imax(1, d.axis[1].taps);
    phase.line = memory.take<Line>(phase.lines);
    phase.weight = memory.take<C>(blocks * taps * lanes);
    if (!memory.base) continue;
    p.phase[f] = phase;
    TapOrder{axis, phase.k}.each(d, [&](std::int64_t at, std::int64_t td, std::int64_t th, std::int64_t tw) {
      const D* from = static_cast<const D*>(d.weight) + weight_offset(d, td, th, tw);
      C* to = phase.weight + at * lanes;
      for (std::int64_t b = 0; b < blocks; ++b, to += taps * lanes)
        for (std::int64_t c = vectors ? vectors->first(b) : b, i = 0; i < lanes; ++i)
          to[i] = load1(from + (c + i) * d.weight_group);
    });
  }
}

}  // namespace
}  // namespace convnorm::conv
