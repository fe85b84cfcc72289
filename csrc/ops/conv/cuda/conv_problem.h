// A dense sub-problem of convolution (Dense in conv.h) as kernels for CUDA walk it: a row is a pixel of the
// result, a column of the reduction is (tap, channel) with channels innermost. Plain C++, tested by the host.
#pragma once

#include "cuda/divide.h"
#include "ops/conv/conv.h"

namespace convnorm::conv {

inline constexpr int kThreads = 256;
inline constexpr int kTile = 64;   // rows and columns of a block's result
inline constexpr int kDepth = 16;  // of the reduction in shared memory at a time
inline constexpr int kMicro = 4;   // rows and columns of a thread's
inline constexpr int kChain =
    256;  // terms that are added one by one, before sums of sums: rounding grows with it

struct Tap {
  int channel, at[kSpatial];
};

// Where a row is written, and where its image and window begin in the source.
struct Pixel {
  std::int64_t dst, src;  // in elements
  int at[kSpatial];
};

struct Problem {
  Dense d;
  std::int64_t pixels, rows;  // of an image, of all
  int reduction;              // taps * red_c
  cuda::Divider by_channels, by_w, by_h;

  CONVNORM_HD Tap tap(int k) const {
    auto c = static_cast<std::uint32_t>(k);
    std::uint32_t w = by_channels.split(c);
    std::uint32_t h = by_w.split(w);
    const std::uint32_t d0 = by_h.split(h);
    return {static_cast<int>(c), {static_cast<int>(d0), static_cast<int>(h), static_cast<int>(w)}};
  }

  CONVNORM_HD Pixel pixel(std::int64_t row) const {
    const std::int64_t n = row / pixels, i = row - n * pixels, line = i / d.axis[2].out;
    const std::int64_t o[kSpatial] = {line / d.axis[1].out, line % d.axis[1].out, i - line * d.axis[2].out};
    Pixel p{n * d.dst_n, n * d.src_n, {}};
    for (int s = 0; s < kSpatial; ++s) {
      p.dst += o[s] * d.axis[s].out_stride;
      p.at[s] = static_cast<int>(o[s] * d.axis[s].step + d.axis[s].offset);
    }
    return p;
  }

  // The source element that a pixel reads for a tap, relative to its group; false in the padding.
  CONVNORM_HD bool source(const Pixel& p, const Tap& t, std::int64_t& offset) const {
    offset = p.src + t.channel * d.src_c;
    bool inside = true;
    for (int s = 0; s < kSpatial; ++s) {
      const std::int64_t i = p.at[s] + t.at[s] * d.axis[s].offset_step;
      inside = inside && i >= 0 && i < d.axis[s].source;
      offset += i * d.axis[s].source_stride;
    }
    return inside;
  }

  CONVNORM_HD std::int64_t weight(std::int64_t group, std::int64_t out, const Tap& t) const {
    std::int64_t offset = group * d.weight_group + out * d.weight_out + t.channel * d.weight_red;
    for (int s = 0; s < kSpatial; ++s) offset += t.at[s] * d.axis[s].weight_step;
    return offset;
  }
};

inline Problem problem_of(const Dense& d) {
  const std::int64_t pixels = d.axis[0].out * d.axis[1].out * d.axis[2].out;
  const std::int64_t taps = d.axis[0].taps * d.axis[1].taps * d.axis[2].taps;
  const auto divider = [](std::int64_t n) { return cuda::Divider(n > 0 ? n : 1); };
  return {d,
          pixels,
          d.n * pixels,
          static_cast<int>(taps * d.red_c),
          divider(d.red_c),
          divider(d.axis[2].taps),
          divider(d.axis[1].taps)};
}

inline std::int64_t up_to(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple; }

// By weight: pixels are cut in splits, each with its own sums, so that few filters still fill a device.
struct Splits {
  std::int64_t tiles, per_split, count;  // tiles of (filter, column) in all groups
};

inline Splits splits_of(const Problem& q) {
  constexpr std::int64_t kBlocks = 512, kLeast = 4 * kChain;
  Splits s{};
  s.tiles = q.d.groups * up_to(q.d.out_c, kTile) * up_to(q.reduction, kTile);
  const std::int64_t wanted = s.tiles < kBlocks ? up_to(kBlocks, s.tiles) : 1;
  const std::int64_t rows = up_to(q.rows, wanted);
  s.per_split = up_to(rows < kLeast ? kLeast : rows, kChain) * kChain;
  s.count = up_to(q.rows, s.per_split);
  return s;
}

// What the kernels refuse, and bytes to work in.
inline const char* cuda_refusal(const Params& p) {
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
  std::int64_t taps = 1;
  for (int s = 0; s < kSpatial; ++s) {
    const std::int64_t extent = (p.input.size[s] > p.output.size[s] ? p.input.size[s] : p.output.size[s]);
    if ((extent + p.window.pad[s]) * p.window.stride[s] + reach(p.window, s) > most)
      return "an extent needs more than 31 bits";
    taps *= p.window.kernel[s];
  }
  const std::int64_t channels = p.input.c > p.output.c ? p.input.c : p.output.c;
  return taps * channels > most ? "a filter has more than 2^31 elements" : nullptr;
}

inline constexpr std::int64_t kMostDirect = 8;

// A tile of 64 channels would be nearly empty.
inline const char* direct_refusal(const Params& p) {
  const std::int64_t c = p.input.c / p.groups, k = p.output.c / p.groups;
  if (p.pass == Pass::by_weight && (c > kMostDirect || k > kMostDirect))
    return "more than 8 channels or filters per group";
  if (p.pass != Pass::by_weight && (p.pass == Pass::forward ? k : c) > kMostDirect)
    return "more than 8 channels of the result per group";
  return cuda_refusal(p);
}

inline std::int64_t weight_workspace(const Params& p) {
  const Problem q = problem_of(forward_problem(p));
  return splits_of(q).count * p.output.c * q.reduction * (p.dtype == DType::f64 ? 8 : 4);
}

}  // namespace convnorm::conv
