// Depthwise convolution (a filter per channel) as its kernels for CUDA cut it. A thread has V channels of a
// strip: kStrip neighbouring outputs along w, whose windows overlap. A block has `lanes` vectors of channels
// and `ways` strips; neighbouring threads lie along memory, over channels or over strips. Plain C++, tested
// by the host.
#pragma once

#include "ops/conv/cuda/conv_problem.h"

namespace convnorm::conv {

inline constexpr int kStrip = 4;
inline constexpr int kMostTaps = 64;   // of a filter: they are in shared memory
inline constexpr int kWideWindow = 7;  // taps along w, which are in registers

struct Strips {
  Dense d;  // the offset of the next tap along w is 1
  bool channels_first;
  int lanes, ways;
  int per_row, per_image;  // strips
  std::int64_t total;      // strips of all images
  int tiles, taps;         // of channels; of a filter
  cuda::Divider by_row, by_h, by_image, by_taps_w, by_taps_h;

  CONVNORM_HD std::int64_t channels() const { return d.groups; }

  struct At {
    std::int64_t n;
    int o[kSpatial];  // the strip's first output
  };
  CONVNORM_HD At at(std::int64_t strip) const {
    auto row = static_cast<std::uint32_t>(strip);
    const std::uint32_t n = by_image.split(row);
    std::uint32_t w = row;
    std::uint32_t h = by_row.split(w);
    const std::uint32_t depth = by_h.split(h);
    return {n, {static_cast<int>(depth), static_cast<int>(h), static_cast<int>(w) * kStrip}};
  }
  // The source coordinate of a tap of output o.
  CONVNORM_HD std::int64_t source(int s, int o, int tap) const {
    return o * d.axis[s].step + d.axis[s].offset + tap * d.axis[s].offset_step;
  }
};

// Taps along w in ascending order of what they read.
inline Dense ascending(Dense d) {
  Axis& w = d.axis[kSpatial - 1];
  if (w.offset_step >= 0 || w.taps == 0) return d;
  w.offset += (w.taps - 1) * w.offset_step;
  w.offset_step = -w.offset_step;
  d.weight = static_cast<char*>(d.weight) + (w.taps - 1) * w.weight_step * bytes(d.dtype);
  w.weight_step = -w.weight_step;
  return d;
}

inline Strips strips_of(const Dense& dense, int vector) {
  const auto power = [](std::int64_t n, int most) {
    int p = 1;
    while (p < n && p < most) p *= 2;
    return p;
  };
  const auto divider = [](std::int64_t n) { return cuda::Divider(n > 0 ? n : 1); };
  Strips q{};
  q.d = ascending(dense);
  const Axis* axis = q.d.axis;
  q.channels_first = q.d.dst_c == 1 && q.d.groups > 1;
  q.per_row = static_cast<int>(up_to(axis[2].out, kStrip));
  q.per_image = static_cast<int>(axis[0].out * axis[1].out * q.per_row);
  q.total = q.d.n * q.per_image;
  const std::int64_t vectors = q.d.groups / vector;
  const int others = kThreads / power(q.per_image, kThreads);  // channels beside the strips of an image
  q.lanes = power(vectors, q.channels_first ? (vector == 1 ? 32 : 16) : (others < 64 ? others : 64));
  q.ways = kThreads / q.lanes;
  q.tiles = static_cast<int>(up_to(vectors, q.lanes));
  q.taps = static_cast<int>(axis[0].taps * axis[1].taps * axis[2].taps);
  q.by_row = divider(q.per_row);
  q.by_h = divider(axis[1].out);
  q.by_image = divider(q.per_image);
  q.by_taps_w = divider(axis[2].taps);
  q.by_taps_h = divider(axis[1].taps);
  return q;
}

// By weight: a block has a row of taps and a piece of the strips; a thread at most `per_thread` of them in a
// sum of its own.
struct Pieces {
  std::int64_t per_piece, count;
};

inline Pieces pieces_of(const Strips& q) {
  constexpr std::int64_t kLeast = 8, kMost = 1024;
  const std::int64_t shared = up_to(q.total, q.ways * kMost), per_thread = shared < kLeast ? kLeast : shared;
  return {per_thread * q.ways, up_to(q.total, per_thread * q.ways)};
}

inline int depthwise_vector(DType dtype) { return dtype == DType::f64 ? 1 : 16 / bytes(dtype); }

// Sums of all pieces, in double.
template <bool kVectors>
std::int64_t depthwise_workspace(const Params& p) {
  const Strips q = strips_of(forward_problem(p), kVectors ? depthwise_vector(p.dtype) : 1);
  return pieces_of(q).count * q.taps * q.channels() * 8;
}

inline const char* depthwise_rows_refusal(const Params& p) {
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
  if (const char* reason = depthwise_refusal(p)) return reason;
  const Window& w = p.window;
  if (w.kernel[2] > kWideWindow) return "more than 7 taps along a row";
  if (w.kernel[0] * w.kernel[1] * w.kernel[2] > kMostTaps) return "a filter has more than 64 taps";
  if (w.kernel[2] > 1 && w.dil[2] != 1) return "taps along a row are apart";
  if (p.pass != Pass::by_input && w.stride[2] > 2) return "windows along a row are more than 2 apart";
  std::int64_t pixels = p.input.n;
  for (int s = 0; s < kSpatial; ++s)
    pixels *= p.input.size[s] > p.output.size[s] ? p.input.size[s] : p.output.size[s];
  if (pixels > most) return "a channel has more than 2^31 elements";
  return cuda_refusal(p);
}

// Channels are innermost and vectors of them lie on 16 bytes.
inline bool in_vectors(const View5& v, int vector) {
  bool fits = v.stride_c == 1 && reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0 &&
              (v.n == 1 || v.stride_n % vector == 0);
  for (int s = 0; s < kSpatial; ++s) fits = fits && (v.size[s] == 1 || v.stride[s] % vector == 0);
  return fits;
}

inline const char* depthwise_channels_refusal(const Params& p) {
  const int vector = depthwise_vector(p.dtype);
  if (vector == 1) return "doubles are moved one by one";
  if (p.input.c % vector != 0) return "channels are not made of vectors of 16 bytes";
  if (!in_vectors(p.input, vector) || !in_vectors(p.output, vector) ||
      reinterpret_cast<std::uintptr_t>(p.residual) % 16 != 0)
    return "channels are not adjacent, or not on 16 bytes";
  return depthwise_rows_refusal(p);
}

}  // namespace convnorm::conv
