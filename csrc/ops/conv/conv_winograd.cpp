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

}  // namespace

bool winograd_enabled() { return enabled(); }
void set_winograd(bool value) { enabled() = value; }

const char* winograd_refusal(const Params& p) {
  if (!enabled()) return "switched off (convnorm.backends.winograd)";
  if (p.dtype != DType::f32) return "float32 only";
  if (p.window.kernel != Dims{1, 3, 3}) return "needs a 3x3 window";
  if (p.window.stride != Dims{1, 1, 1} || p.window.dil != Dims{1, 1, 1}) return "needs stride 1 and dilation 1";
  if (p.input.size[0] != 1 || p.output.size[0] != 1) return "needs a depth of 1";
  if (p.groups != 1) return "needs one group";
  return nullptr;
}

}  // namespace convnorm::conv
