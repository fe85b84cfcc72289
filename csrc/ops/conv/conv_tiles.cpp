// Which problems are products of tiles of bfloat16 (cpu/conv_tiles_plan.h).
#include "ops/conv/conv.h"

namespace convnorm::conv {
namespace {

// A block of 32 terms and one of 16 filters are filled up with zeros: with fewer than half of one, most of
// the products are of these. Few channels are gathered with all taps; of a group they would be gathered again
// for each.
constexpr std::int64_t kFewestTerms = 16;

}  // namespace

const char* tiles_refusal(const Params& p) {
  if (p.dtype != DType::bf16) return "bfloat16 only";
  const std::int64_t channels = (p.pass == Pass::by_input ? p.output.c : p.input.c) / p.groups;
  if (channels >= kFewestTileChannels) return nullptr;
  if (p.groups > 1) return "groups of fewer than 16 channels";
  const Dims& k = p.window.kernel;
  if (channels * k[0] * k[1] * k[2] < kFewestTerms) return "sums of fewer than 16 terms";
  return nullptr;
}

}  // namespace convnorm::conv
