// Small images of planes (NCHW), computed as channels_last copies.
//
// Pixels across, 49 of them fill 49 of 64 columns of tiles, lines of an image end within a vector, and what
// is packed of 14x14 pixels serves few filters. Channels across, rows of tiles are pixels, as many as there
// are. So the images are turned on the way in, and the result on the way out, a square in registers at a
// time:
//
//   forward     input, residual -> channels_last     gemm     output <-
//   by input    output's gradient ->                 gemm     input's gradient <-
//
// Copies are scratch. Include after conv_igemm_kernel.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kTurnedChannels = 64;  // at a time: four lines of a pixel

// body(image, first channel, channels) in parallel.
template <class Body>
void each_piece(const View5& v, Body&& body) {
  const std::int64_t pieces = ceil_div(v.c, kTurnedChannels);
  parallel_for(v.n * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t c = i % pieces * kTurnedChannels;
      body(i / pieces, c, imin(kTurnedChannels, v.c - c));
    }
  });
}

// Images laid out as `planes` to `turned`, and back.
inline void turn_images(const View5& planes, const void* from, const View5& turned, void* to) {
  each_piece(planes, [&](std::int64_t n, std::int64_t c, std::int64_t channels) {
    transpose_lanes(static_cast<const float*>(from) + n * planes.stride_n + c * planes.stride_c,
                    planes.stride_c, channels, pixels(planes),
                    static_cast<float*>(to) + n * turned.stride_n + c, turned.c);
  });
}

inline void turn_images_back(const View5& turned, const View5& planes) {
  each_piece(planes, [&](std::int64_t n, std::int64_t c, std::int64_t channels) {
    transpose_lanes(
        static_cast<const float*>(turned.data) + n * turned.stride_n + c, turned.c, pixels(planes), channels,
        static_cast<float*>(planes.data) + n * planes.stride_n + c * planes.stride_c, planes.stride_c);
  });
}

inline void run_turned(const Params& p) {
  Params q = channels_last_problem(p);
  float* residual;
  carve_scratch(Slot::rewritten, [&](Arena& arena) {
    q.input.data = arena.take<float>(q.input.n * q.input.stride_n);
    residual = arena.take<float>(p.residual ? q.output.n * q.output.stride_n : 0);
    return q.output.data = arena.take<float>(q.output.n * q.output.stride_n);
  });
  if (p.residual) {
    turn_images(p.output, p.residual, q.output, residual);
    q.residual = residual;
  }
  if (p.pass == Pass::forward) {
    turn_images(p.input, p.input.data, q.input, q.input.data);
    run_gemm(forward_problem(q));
    return turn_images_back(q.output, p.output);
  }
  turn_images(p.output, p.output.data, q.output, q.output.data);
  run_by_input(q);
  turn_images_back(q.input, p.input);
}

}  // namespace
}  // namespace convnorm::conv
