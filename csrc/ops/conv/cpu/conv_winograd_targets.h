// What the transformed tiles of one image are multiplied for: its result, or by input at a step s, the s x s
// phases of it.
//
// Pixel s y + p of a gradient has taps p', p' + s, ... of the window at the outputs y, y - 1, ... before it,
// so each phase is a problem of step 1 (by_input_problems in conv.h) over one and the same source. Where they
// read the same six outputs they share V:
//
//   tile t:   source       m t + first ... + 5         first: the lowest that any phase reads
//             phase p      m t - shift(p) ... + m - 1  shift: how much further on its own lowest is, 0 or 1
//
// A phase with a tap less has a last one of zero, and no products at infinity (see conv_winograd_slices.h).
// The phases of a row, in the order in which their pixels come, fill it without a gap: those with a shift lie
// before the others.
//
// Include after conv_winograd_tiles.h.
#pragma once

namespace convnorm::conv {
namespace {

inline std::int64_t lowest(const Axis& a) { return a.offset + imin(0, (a.taps - 1) * a.offset_step); }

struct Target {
  const Dense* d;
  std::int64_t shift_h, shift_w;
  Wanted wanted;
};

struct Targets {
  const Dense* problems;  // those of a row of phases follow each other
  std::int64_t count, phases;
  Dense joint;  // the source as all of them see it

  std::int64_t rows() const { return count / phases; }

  Target at(std::int64_t i) const {
    const Dense& d = problems[i];
    const auto shift = [&](int s) { return count > 1 ? lowest(d.axis[s]) - lowest(joint.axis[s]) : 0; };
    const auto wanted = [&](int s) { return kReach - (count > 1 && d.axis[s].taps < joint.axis[s].taps); };
    return {&d, shift(1), shift(2), {wanted(1), wanted(2)}};
  }

  // Where the pixels of phase i lie among those of a row, and how far before the first of phase 0 they begin.
  std::int64_t place(std::int64_t i) const { return (i + before()) % phases; }
  std::int64_t before() const {
    std::int64_t shifted = 0;
    for (std::int64_t i = 0; i < phases; ++i) shifted += at(i).shift_w;
    return shifted;
  }
};

inline Targets make_targets(const Dense* problems, std::int64_t count, std::int64_t phases) {
  Targets t{problems, count, phases, problems[0]};
  if (count == 1) return t;
  for (int s = 1; s < kSpatial; ++s) {
    Axis& a = t.joint.axis[s];
    std::int64_t first = lowest(a);
    for (std::int64_t i = 0; i < count; ++i) {
      a.taps = imax(a.taps, problems[i].axis[s].taps);
      first = imin(first, lowest(problems[i].axis[s]));
    }
    a.offset = first + a.taps - 1;
    for (std::int64_t i = 0; i < count; ++i) {
      const Axis& b = problems[i].axis[s];
      a.out = imax(a.out, b.out + lowest(b) - first);
    }
  }
  return t;
}

}  // namespace
}  // namespace convnorm::conv
