// What Winograd's sum runs over besides channels: the depth taps of a window, and the phases of its step.
//
// A window of step s is s x s windows of step 1, each over the pixels of one phase p of rows and columns:
//
//   out[y][x] = sum over p_h, p_w, i, j of  w[s i + p_h][s j + p_w] * in[s (y + i) + p_h][s (x + j) + p_w]
//
// Their products are added up before the output transform, as those of channels are; a phase is read in
// place. Of k taps, ceil(k/s) are a phase's, and one less of the phases from k mod s on. The last tap of such
// a short phase is zero, and with it its value at the last point, infinity: 36 products become 30 or 25. A
// 3x3 window at step 2 takes 36 + 30 + 30 + 25 = 121 for 25 outputs, which are 225 plainly.
//
// Slices lie in an order in which those that a product needs follow each other:
//
//   (full rows, short columns)  (full, full)  (short, full)  (short, short)
//   '--- products of the last row ---------'
//                               '--- of the last column -'
//
// Include after conv_winograd_transform.h.
#pragma once

namespace convnorm::conv {
namespace {

// Phases of a step along an axis, full and short, and the taps of a full one.
struct Phases {
  std::int64_t step, full, taps;
  std::int64_t brief() const { return step - full; }
  std::int64_t taps_of(std::int64_t phase) const { return taps - (phase >= full); }
};

inline Phases phases_along(const Axis& a) {
  const std::int64_t rest = a.taps % a.step;
  return {a.step, rest ? rest : a.step, ceil_div(a.taps, a.step)};
}

// One depth tap of one phase.
struct Slice {
  std::int64_t tap, phase_h, phase_w;
  Wanted wanted;
};

struct Slices {
  std::int64_t depth;  // taps
  Phases h, w;

  std::int64_t count() const { return depth * h.step * w.step; }
  std::int64_t to_full() const { return depth * h.full * w.brief(); }
  std::int64_t to_short() const { return depth * h.full * w.step; }

  Slice at(std::int64_t i) const {
    const std::int64_t tap = i % depth;
    i /= depth;
    const bool short_h = i >= h.full * w.step;
    if (short_h) i -= h.full * w.step;
    const std::int64_t rows = short_h ? h.brief() : h.full;
    const std::int64_t first = rows * (short_h ? w.full : w.brief());  // slices of the first kind of columns
    const bool is_first = i < first;
    const bool short_w = is_first != short_h;
    if (!is_first) i -= first;
    return {tap,
            i % rows + (short_h ? h.full : 0),
            i / rows + (short_w ? w.full : 0),
            {kReach - short_h, kReach - short_w}};
  }

  // Those that product xi has a part of.
  Span of_product(int xi) const {
    const bool last_row = xi / kReach == kReach - 1, last_column = xi % kReach == kReach - 1;
    const std::int64_t full = depth * h.step * w.full;
    const std::int64_t end = last_row ? to_short() : last_column ? to_full() + full : count();
    return {last_column ? to_full() : 0, end};
  }
};

inline Slices make_slices(const Dense& d) {
  return {d.axis[0].taps, phases_along(d.axis[1]), phases_along(d.axis[2])};
}

// A problem of the weights of one slice.
inline Dense weights_of(const Dense& d, const Slice& slice) {
  Dense q = d;
  const Slices s = make_slices(d);
  const auto narrow = [](Axis& a, const Phases& phases, std::int64_t phase) {
    const std::int64_t skipped = phase * a.weight_step;
    a.taps = phases.taps_of(phase);
    a.weight_step *= phases.step;
    return skipped;
  };
  const std::int64_t skipped = slice.tap * d.axis[0].weight_step + narrow(q.axis[1], s.h, slice.phase_h) +
                               narrow(q.axis[2], s.w, slice.phase_w);
  q.axis[0].taps = 1;
  q.weight = static_cast<float*>(d.weight) + skipped;
  return q;
}

}  // namespace
}  // namespace convnorm::conv
