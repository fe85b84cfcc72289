// Which problems Winograd's method takes, and its switch.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cpu/isa.h"
#include "ops/conv/conv.h"

namespace convnorm::conv {
namespace {

bool from_environment() {
  const char* value = std::getenv("CONVNORM_WINOGRAD");
  return !value || std::strcmp(value, "0") != 0;
}

bool& enabled() {
  static bool value = from_environment();
  return value;
}

// A window along an axis as those of step 1 over the phases of its step.
struct Along {
  std::int64_t side;    // taps of a phase, at most
  std::int64_t tiles;   // each of the images that a dilated window interleaves has its own
  std::int64_t points;  // of all phases: those with a tap less have one less
};

std::int64_t up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

Along along(const Window& w, int axis, std::int64_t out) {
  const std::int64_t step = w.stride[axis], dil = w.dil[axis], side = up(w.kernel[axis], step);
  return {side, dil * up(up(out, dil), winograd_tile(side)), 6 * step - (step * side - w.kernel[axis])};
}

// What there is to transform: tiles of outputs, and terms of the sum at each of the phases of the stride.
struct Work {
  Along h, w;
  std::int64_t phases, terms, out_c, tiles;
};

Work work_of(const Params& p) {
  const bool by_input = p.pass == Pass::by_input;
  const View5 &in = by_input ? p.output : p.input, &out = by_input ? p.input : p.output;
  const Dims& step = p.window.stride;
  const auto outputs = [&](int axis) { return by_input ? up(out.size[axis], step[axis]) : out.size[axis]; };
  const Along h = along(p.window, 1, outputs(1)), w = along(p.window, 2, outputs(2));
  return {h, w, step[1] * step[2], in.c * p.window.kernel[0], out.c, out.n * out.size[0] * h.tiles * w.tiles};
}

// Estimated cost of the direct sum, `direct` multiplications of the tile kernel, over that of the transforms
// and the products, 36 of a window of step 1. The constants are measured: a filter's transform takes as long
// as 200 multiplications, by weight 300, and a tile's and channel's as 400, of every slice (depth tap and
// phase of the stride). By weight slices and channels are columns of the products, and count as whole vectors
// of them.
bool pays(const Params& p, std::int64_t direct) {
  const auto& [h, w, phases, terms, out_c, tiles] = work_of(p);
  const bool by_input = p.pass == Pass::by_input, by_weight = p.pass == Pass::by_weight;
  const std::int64_t columns = by_weight ? up(terms, 16) * 16 : terms, filter = by_weight ? 300 : 200;
  const std::int64_t tile = by_input ? terms + phases * out_c : phases * terms + out_c;
  const std::int64_t winograd =
      (h.points * w.points * tiles + filter * phases) * columns * out_c + 400 * tiles * tile;
  return 5 * direct >= 6 * winograd;
}

// Forward at a stride, a tile's V is of all phases and read for every panel of filters. Where that of a block
// of tiles exceeds L2 three times, the products wait for it: on 512 KB of L2 (less was not measured), 128
// channels took 1.2 to 1.6 times as long as directly. Few tiles are not affected: each of their filters is
// transformed where it is used.
bool v_leaves_l2(const Params& p) {
  const Work work = work_of(p);
  if (p.pass != Pass::forward || work.phases == 1 || work.tiles <= kFewTiles) return false;
  const std::int64_t block = kBlockTiles * 36 * std::int64_t(sizeof(float)) * work.phases * work.terms;
  return block > 3 * std::max<std::int64_t>(l2_bytes(), 512 << 10);
}

// Multiplications of the plain sum; by input, of a stride's phases together.
std::int64_t direct_products(const Params& p) {
  const bool by_input = p.pass == Pass::by_input && p.window.stride == Dims{1, 1, 1};
  const View5& out = by_input ? p.input : p.output;
  const Dims& k = p.window.kernel;
  return out.n * out.size[0] * out.size[1] * out.size[2] * k[0] * k[1] * k[2] * p.input.c * p.output.c;
}

// A window that there are transforms for.
bool has_transforms(const Window& w) {
  const std::int64_t side = along(w, 1, 1).side;
  return side == along(w, 2, 1).side && side >= 2 && side <= 5;
}

constexpr const char* kOff = "switched off (convnorm.backends.set_winograd)";
constexpr const char* kNoTransforms = "needs 2x2 to 5x5 taps at every phase of the stride";
constexpr const char* kTooFew = "too few channels or tiles: the transforms would cost more than they save";
constexpr const char* kLeavesL2 =
    "too many channels at a stride for the second level cache of this processor";
constexpr std::int64_t kMostFolded = 32;  // channels of a folded image

}  // namespace

bool winograd_enabled() { return enabled(); }
void set_winograd(bool value) { enabled() = value; }

const char* winograd_refusal(const Params& p) {
  if (!enabled()) return kOff;
  if (p.dtype != DType::f32) return "float32 only";
  if (!has_transforms(p.window)) return kNoTransforms;
  const std::int64_t strides = p.window.stride[1] * p.window.stride[2];
  if (strides != 1 && p.window.dil != Dims{1, 1, 1}) return "a dilated window: needs stride 1";
  if (p.pass == Pass::by_input && p.window.stride[0] != 1) return "by input: needs stride 1 in depth";
  if (p.input.size[1] < p.window.stride[1] || p.input.size[2] < p.window.stride[2])
    return "needs an image as large as its stride";
  if (kBlockTiles % p.window.dil[2] != 0)
    return "needs a dilation along rows that divides 24, the tiles of a block";
  if (p.groups != 1) return "needs one group";
  if (v_leaves_l2(p)) return kLeavesL2;
  return pays(p, direct_products(p)) ? nullptr : kTooFew;
}

const char* winograd_folded_refusal(const Params& p) {
  if (!enabled()) return kOff;
  if (p.dtype != DType::f32) return "float32 only";
  if (p.window.stride[1] * p.window.stride[2] == 1) return "stride 1: nothing to fold";
  if (p.window.dil != Dims{1, 1, 1}) return "a dilated window";
  if (p.input.size[0] * p.output.size[0] * p.window.kernel[0] != 1) return "needs one plane";
  if (p.groups != 1) return "needs one group";
  const Params folded = folded_problem(p);
  if (folded.input.c > kMostFolded) return "more than 32 channels times phases of the stride";
  if (!has_transforms(folded.window)) return kNoTransforms;
  return pays(folded, direct_products(p)) ? nullptr : kTooFew;
}

}  // namespace convnorm::conv
