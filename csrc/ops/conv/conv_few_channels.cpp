// Which problems the kernels for few channels take: groups, and by input of a stem.
#include "ops/conv/conv.h"

namespace convnorm::conv {
namespace {

// With more channels per group the tiles of implicit GEMM are full.
constexpr std::int64_t kMostGrouped = 32;

template <int kVectorBytes>
bool whole_vectors(const Params& p, std::int64_t channels) {
  return channels % (kVectorBytes / (p.dtype == DType::f64 ? 8 : 4)) == 0;
}

// Groups of 4 or 8 channels side by side in a vector (conv_grouped_lanes.h).
template <int kVectorBytes>
bool groups_share_vectors(const Params& p) {
  const std::int64_t lanes = kVectorBytes / (p.dtype == DType::f64 ? 8 : 4), channels = p.input.c / p.groups;
  return channels == p.output.c / p.groups && (channels == 4 || channels == 8) && channels < lanes &&
         p.input.c % lanes == 0 && p.window.kernel[2] == 3 && p.window.stride[2] == 1 &&
         p.window.dil[2] == 1 && p.input.stride_c == 1 && p.output.stride_c == 1;
}

}  // namespace

template <int kVectorBytes>
const char* grouped_refusal(const Params& p) {
  const std::int64_t channels = p.input.c / p.groups, filters = p.output.c / p.groups;
  const bool forward = p.pass == Pass::forward;
  if (p.groups == 1) return "one group";
  if (channels > kMostGrouped || filters > kMostGrouped) return "more than 32 channels or filters per group";
  if ((forward ? p.output : p.input).stride_c != 1) return "the result is not channels_last";
  if (!whole_vectors<kVectorBytes>(p, forward ? filters : channels) && !groups_share_vectors<kVectorBytes>(p))
    return "the result's channels per group are not whole vectors, and groups do not share any";
  return nullptr;
}

template <int kVectorBytes>
const char* grouped_weight_refusal(const Params& p) {
  const std::int64_t channels = p.input.c / p.groups;
  if (p.groups == 1) return "one group";
  if (channels > kMostGrouped) return "more than 32 channels per group";
  if (!whole_vectors<kVectorBytes>(p, channels)) return "channels per group are not whole vectors";
  if (p.output.c / p.groups % 4 != 0) return "filters per group are not a multiple of 4";
  if (p.window.kernel[2] < 2) return "windows are one column wide";
  return nullptr;
}

template <int kVectorBytes>
const char* col2im_refusal(const Params& p) {
  const std::int64_t lanes = kVectorBytes / (p.dtype == DType::f64 ? 8 : 4);
  if (p.groups != 1) return "several groups";
  if (p.input.stride_c != 1 || p.output.stride_c != 1)
    return "the result or the gradient is not channels_last";
  if (2 * p.input.c > lanes) return "the channels fill half a vector";
  if (p.window.kernel[2] < 2) return "windows are one column wide";
  if (p.window.dil[2] != 1) return "taps of a row are apart";
  if (p.output.c < 4) return "fewer than 4 filters";
  return nullptr;
}

#define CONVNORM_VECTORS_OF(bytes)                                   \
  template const char* grouped_refusal<bytes>(const Params&);        \
  template const char* grouped_weight_refusal<bytes>(const Params&); \
  template const char* col2im_refusal<bytes>(const Params&);
CONVNORM_VECTORS_OF(16)
CONVNORM_VECTORS_OF(32)
CONVNORM_VECTORS_OF(64)
#undef CONVNORM_VECTORS_OF

}  // namespace convnorm::conv
