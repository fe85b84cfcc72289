// Which problems Winograd's method takes, and its switch.
#include <cstdlib>
#include <cstring>

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

// Tiles along an axis: each of the images that a dilated window interleaves has its own.
std::int64_t tiles_along(std::int64_t out, std::int64_t taps, std::int64_t dil) {
  const std::int64_t tile = winograd_tile(taps);
  return dil * (((out + dil - 1) / dil + tile - 1) / tile);
}

// Estimated cost of the direct sum, `direct` multiplications of the tile kernel, over that of the transforms
// and the 36 products. The constants are measured: a filter's transform takes as long as 200 of them, by
// weight 300, and a tile's and channel's as 400. Depth taps lengthen the sum and transform a tile once each.
// By weight they and the channels are columns of the products, and count as whole vectors of them.
bool pays(const Params& p, std::int64_t direct) {
  const bool by_input = p.pass == Pass::by_input, by_weight = p.pass == Pass::by_weight;
  const View5 &in = by_input ? p.output : p.input, &out = by_input ? p.input : p.output;
  const std::int64_t terms = p.window.kernel[0] * in.c, columns = by_weight ? (terms + 15) / 16 * 16 : terms;
  const std::int64_t planes = out.n * out.size[0], filter = by_weight ? 300 : 200, side = p.window.kernel[1];
  const std::int64_t tiles = planes * tiles_along(out.size[1], side, p.window.dil[1]) *
                             tiles_along(out.size[2], side, p.window.dil[2]);
  const std::int64_t winograd = (36 * tiles + filter) * columns * out.c + 400 * tiles * (terms + out.c);
  return 5 * direct >= 6 * winograd;
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
  return w.kernel[1] == w.kernel[2] && w.kernel[1] >= 2 && w.kernel[1] <= 5;
}

constexpr const char* kOff = "switched off (convnorm.backends.set_winograd)";
constexpr const char* kTooFew = "too few channels or tiles: the transforms would cost more than they save";
constexpr std::int64_t kMostFolded = 32;  // channels of a folded image

}  // namespace

bool winograd_enabled() { return enabled(); }
void set_winograd(bool value) { enabled() = value; }

const char* winograd_refusal(const Params& p) {
  if (!enabled()) return kOff;
  if (p.dtype != DType::f32) return "float32 only";
  if (!has_transforms(p.window)) return "needs a window of 2x2 to 5x5";
  if (p.window.stride != Dims{1, 1, 1}) return "needs stride 1";
  if (24 % p.window.dil[2] != 0) return "needs a dilation along rows that divides 24, the tiles of a block";
  if (p.groups != 1) return "needs one group";
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
  if (!has_transforms(folded.window)) return "needs a window of 2x2 to 5x5 steps";
  return pays(folded, direct_products(p)) ? nullptr : kTooFew;
}

}  // namespace convnorm::conv
