// Which problems on small images of planes are computed as channels_last copies (conv_igemm_turned.h).
#include "ops/conv/conv.h"

namespace convnorm::conv {
namespace {

constexpr std::int64_t kMostPixels = 256;  // of all output planes: four of 7x7, one of 14x14; more fill tiles
constexpr std::int64_t kLine = 16;         // floats
// Multiplications per element that is turned, which costs as much as 12 to 16; about a tenth is saved.
constexpr std::int64_t kLeastProducts = 160;

// Planes of pixels that follow each other.
bool has_planes(const View5& v) {
  const bool rows = v.size[2] == 1 || v.stride[2] == 1;
  const bool columns = v.size[1] == 1 || v.stride[1] == v.size[2];
  const bool depth = v.size[0] == 1 || v.stride[0] == v.size[1] * v.size[2];
  return rows && columns && depth && v.stride_c >= pixels(v);
}

View5 channels_last(View5 v) {
  v.stride_c = 1;
  v.stride[2] = v.c;
  v.stride[1] = v.size[2] * v.c;
  v.stride[0] = v.size[1] * v.stride[1];
  v.stride_n = v.size[0] * v.stride[0];
  v.data = nullptr;
  return v;
}

}  // namespace

Params channels_last_problem(const Params& p) {
  Params q = p;
  q.input = channels_last(p.input);
  q.output = channels_last(p.output);
  return q;
}

const char* turned_refusal(const Params& p) {
  if (p.dtype != DType::f32) return "float32 only";
  if (p.groups != 1) return "needs one group";
  if (p.output.n * pixels(p.output) > kMostPixels) return "more than 256 outputs of a channel";
  if (pixels(p.output) < 2) return "planes of one output";
  if (!has_planes(p.input) || !has_planes(p.output)) return "needs planes whose pixels follow each other";
  if (p.input.c % kLine != 0 || p.output.c % kLine != 0) return "needs channels in multiples of 16";
  const Dims& k = p.window.kernel;
  const std::int64_t products = k[0] * k[1] * k[2] * p.input.c * p.output.c * pixels(p.output);
  const std::int64_t turned = p.input.c * pixels(p.input) + p.output.c * pixels(p.output);
  return products >= kLeastProducts * turned ? nullptr : "turning would cost more than it saves";
}

}  // namespace convnorm::conv
