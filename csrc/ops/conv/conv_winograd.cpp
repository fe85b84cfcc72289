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
std::int64_t tiles_along(std::int64_t out, std::int64_t dil) {
  return dil * (((out + dil - 1) / dil + 3) / 4);
}

// Estimated cost of the direct sum over that of the transforms and the 36 products, in multiplications of the
// tile kernel. The constants are measured: a filter's transform takes as long as 200 of them, by weight 300,
// and a tile's and channel's as 400. Depth taps lengthen the sum and transform a tile once each. By weight
// they and the channels are columns of the products, and count as whole panels of them.
bool pays(const Params& p) {
  const bool by_input = p.pass == Pass::by_input, by_weight = p.pass == Pass::by_weight;
  const View5 &in = by_input ? p.output : p.input, &out = by_input ? p.input : p.output;
  const std::int64_t terms = p.window.kernel[0] * in.c, columns = by_weight ? (terms + 31) / 32 * 32 : terms;
  const std::int64_t planes = out.n * out.size[0], filter = by_weight ? 300 : 200;
  const std::int64_t tiles =
      planes * tiles_along(out.size[1], p.window.dil[1]) * tiles_along(out.size[2], p.window.dil[2]);
  const std::int64_t direct = 9 * planes * out.size[1] * out.size[2] * terms * out.c;
  const std::int64_t winograd = (36 * tiles + filter) * columns * out.c + 400 * tiles * (terms + out.c);
  return 5 * direct >= 6 * winograd;
}

}  // namespace

bool winograd_enabled() { return enabled(); }
void set_winograd(bool value) { enabled() = value; }

const char* winograd_refusal(const Params& p) {
  if (!enabled()) return "switched off (convnorm.backends.set_winograd)";
  if (p.dtype != DType::f32) return "float32 only";
  if (p.window.kernel[1] != 3 || p.window.kernel[2] != 3) return "needs a 3x3 window";
  if (p.window.stride != Dims{1, 1, 1}) return "needs stride 1";
  if (24 % p.window.dil[2] != 0) return "needs a dilation along rows that divides 24, the tiles of a block";
  if (p.groups != 1) return "needs one group";
  if (!pays(p)) return "too few channels or tiles: the transforms would cost more than they save";
  return nullptr;
}

}  // namespace convnorm::conv
