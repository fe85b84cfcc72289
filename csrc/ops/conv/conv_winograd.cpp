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

// Estimated cost of the direct sum over that of the transforms and the 36 products, in multiplications of the
// tile kernel (the constants are measured: a filter's transform takes as long as 200 of them, a tile's and
// channel's as 400).
bool pays(const Params& p) {
  const View5& out = p.pass == Pass::forward ? p.output : p.input;
  const std::int64_t filters = p.input.c * p.output.c;
  const std::int64_t tiles = out.n * ((out.size[1] + 3) / 4) * ((out.size[2] + 3) / 4);
  const std::int64_t direct = 9 * out.n * out.size[1] * out.size[2] * filters;
  const std::int64_t winograd = (36 * tiles + 200) * filters + 400 * tiles * (p.input.c + p.output.c);
  return 5 * direct >= 6 * winograd;
}

}  // namespace

bool winograd_enabled() { return enabled(); }
void set_winograd(bool value) { enabled() = value; }

const char* winograd_refusal(const Params& p) {
  if (!enabled()) return "switched off (convnorm.backends.set_winograd)";
  if (p.dtype != DType::f32) return "float32 only";
  if (p.window.kernel != Dims{1, 3, 3}) return "needs a 3x3 window";
  if (p.window.stride != Dims{1, 1, 1} || p.window.dil != Dims{1, 1, 1})
    return "needs stride 1 and dilation 1";
  if (p.input.size[0] != 1 || p.output.size[0] != 1) return "needs a depth of 1";
  if (p.groups != 1) return "needs one group";
  if (!pays(p)) return "too few channels or tiles: the transforms would cost more than they save";
  return nullptr;
}

}  // namespace convnorm::conv
