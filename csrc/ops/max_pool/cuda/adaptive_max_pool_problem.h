// Adaptive max pooling, and what works by recorded indices, as their kernels for CUDA see them: windows of
// shares, and planes cut into tiles that fit in shared memory. Plain C++, tested by the host.
#pragma once

#include "ops/max_pool/adaptive_max_pool.h"
#include "ops/max_pool/cuda/max_pool_rows.h"

namespace convnorm::max_pool {

// Window o along an axis, as adaptive_span() has it.
struct Share {
  std::int64_t in, out;

  CONVNORM_HD void span(int o, int& begin, int& end) const {
    begin = static_cast<int>(o * in / out);
    end = static_cast<int>(((o + 1) * in + out - 1) / out);
  }
};

struct Adaptive {
  Share axis[kSpatial];
  Argmax record;
  cuda::Order outputs;  // c counts vectors

  // Where a position is in the plane, which is what is recorded.
  CONVNORM_HD int index(int d, int h, int w) const {
    return static_cast<int>((d * axis[1].in + h) * axis[2].in + w);
  }
};

inline Adaptive adaptive_of(const Params& p, int vector) {
  Adaptive a{};
  for (int d = 0; d < kSpatial; ++d) a.axis[d] = {p.in[d], p.out[d]};
  a.record = p.record;
  a.outputs = cuda::order_of(p.out, p.c / vector, p.output.c == 1 && p.c > 1);
  return a;
}

// A block of spread or place has `planes` neighbouring channels of an image and `positions` of each plane in
// shared memory. It reads all indices of these planes and keeps those that fall into its tile. Where channels
// are innermost, neighbouring threads have neighbouring channels, else neighbouring outputs.
struct Tiles {
  int planes, positions;
  int plane, outputs;  // positions of a plane, outputs of it
  int channel_groups, position_tiles, channels;
  bool channels_first;
  cuda::Divider by_planes, by_outputs, by_h, by_w;  // of out

  CONVNORM_HD std::int64_t blocks_per_image() const {
    return static_cast<std::int64_t>(channel_groups) * position_tiles;
  }
  CONVNORM_HD int elements() const { return planes * outputs; }  // that a block reads

  // Element e of a block as plane and output. Of one plane, a later element has a later output.
  CONVNORM_HD void element(int e, int& k, int& output) const {
    auto rest = static_cast<std::uint32_t>(e);
    const std::uint32_t quotient = channels_first ? by_planes.split(rest) : by_outputs.split(rest);
    k = static_cast<int>(channels_first ? rest : quotient);
    output = static_cast<int>(channels_first ? quotient : rest);
  }
  // The cell of a position of the tile.
  CONVNORM_HD int cell(int k, int position) const {
    return channels_first ? position * planes + k : k * positions + position;
  }
  CONVNORM_HD void coordinates(int output, int (&at)[kSpatial]) const {
    auto w = static_cast<std::uint32_t>(output);
    std::uint32_t h = by_w.split(w);
    at[0] = static_cast<int>(by_h.split(h));
    at[1] = static_cast<int>(h);
    at[2] = static_cast<int>(w);
  }
};

inline constexpr int kMostPlanes = 32;

// `cells` is what shared memory holds. Whole planes, as many as fit; of larger planes a tile. Channels that
// are innermost go at least by 8, so that reads of them fill sectors of memory.
inline Tiles tiles_of(const Params& p, int cells) {
  Tiles t{};
  t.channels_first = p.output.c == 1 && p.c > 1;
  t.channels = static_cast<int>(p.c);
  t.plane = static_cast<int>(plane(p));
  t.outputs = static_cast<int>(p.out[0] * p.out[1] * p.out[2]);
  const int least = t.channels_first ? 8 : 1;
  t.planes = kMostPlanes;
  while (t.planes > least &&
         (t.planes / 2 >= t.channels || static_cast<std::int64_t>(t.planes) * t.plane > cells))
    t.planes /= 2;
  t.positions = cells / t.planes < t.plane ? cells / t.planes : t.plane;
  t.channel_groups = (t.channels + t.planes - 1) / t.planes;
  t.position_tiles = (t.plane + t.positions - 1) / t.positions;
  t.by_planes = cuda::Divider(t.planes);
  t.by_outputs = cuda::Divider(t.outputs > 0 ? t.outputs : 1);
  t.by_h = cuda::Divider(p.out[1] > 0 ? p.out[1] : 1);
  t.by_w = cuda::Divider(p.out[2] > 0 ? p.out[2] : 1);
  return t;
}

// Outputs of kMostPlanes channels, and a block's threads behind them, are counted in 31 bits.
inline const char* refuse_indices_cuda(const Params& p) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max() / (2 * kMostPlanes);
  if (p.out[0] * p.out[1] * p.out[2] > most) return "more than 2^25 values per plane";
  return refuse_cuda(p);
}

// A warp per output pays where windows have as many positions as a warp has threads.
inline const char* refuse_warp_cuda(const Params& p) {
  if (p.output.c == 1 && p.c > 1) return "channels are innermost: neighbouring threads have those";
  if (plane(p) < 32 * p.out[0] * p.out[1] * p.out[2]) return "windows have fewer than 32 positions";
  return refuse_cuda(p);
}

}  // namespace convnorm::max_pool
