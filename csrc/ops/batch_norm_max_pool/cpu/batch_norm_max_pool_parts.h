// Parts of a batch that are normalised and pooled one at a time, as problems of the two rooms.
//
//   planes   (NCHW) whole planes, about kPart values: channels of one image that follow each other, which is
//            one run of memory, or one channel of several images. If larger than kWhole, bands of them
//   rows     (channels_last) an image, or a band of it: output rows, and the input rows that their windows
//            cover. Rows that two bands share are normalised twice
//
// A window keeps its taps, and so its bytes, in the problem of a part: only the padding in front differs, and
// no window of a part covers anything of the image that the part has not.
#pragma once

#include <algorithm>
#include <string>

#include "common/registry.h"
#include "cpu/scratch.h"
#include "ops/batch_norm_max_pool/batch_norm_max_pool.h"

namespace convnorm::batch_norm_max_pool {
namespace {

namespace bn = batch_norm;
namespace mp = max_pool;

constexpr std::int64_t kPart = 16384;   // values: 64 KB of float, in L2 beside what is read and written
constexpr std::int64_t kWhole = 65536;  // planes, or images of rows, up to so many are not cut

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline char* at_element(const void* p, std::int64_t element, DType dtype) {
  return static_cast<char*>(const_cast<void*>(p)) + element * bytes(dtype);
}

inline std::int64_t code_bytes(mp::Argmax kind) {
  return kind == mp::Argmax::offset8 ? 1 : kind == mp::Argmax::offset32 ? 4 : 8;
}

// What an op's list of kernels takes first. Parts differ in size, and each is asked for anew.
template <class Fn>
Fn pick(const char* op, std::span<const mp::Kernel<Fn>> rows, const mp::Params& p) {
  const std::string& forced = forced_kernel(op);
  for (const auto& row : rows)
    if (!refusal(row, p, forced)) return row.run;
  refuse_all(op, rows, p, forced);
}

// The input coordinates that output coordinates [o.begin, o.end) cover.
inline Span covered(const mp::Params& p, int d, const Span& o) {
  return {std::max<std::int64_t>(0, mp::at(p, d, o.begin, 0)),
          std::min(p.in[d], mp::at(p, d, o.end - 1, p.window.kernel[d] - 1) + 1)};
}

// Strides of n images with c channels of some size, dense.
inline Strides dense(bool rows, std::int64_t c, const Dims& size) {
  const std::int64_t step = rows ? c : 1, line = size[2] * step, slab = size[1] * line, all = size[0] * slab;
  return {rows ? all : c * all, rows ? 1 : all, {slab, line, step}};
}

// `channels` of one image, or of all of x, from input coordinates `from` on.
inline NormView some(const NormView& x, DType dtype, std::int64_t n, std::int64_t images, std::int64_t c,
                     std::int64_t channels, const Dims& from, const Dims& size) {
  NormView v = x;
  std::int64_t offset = n * x.outer_stride + c * x.channel_stride;
  for (int d = 0; d < kSpatial; ++d) offset += from[d] * x.stride[d];
  v.data = at_element(x.data, offset, dtype);
  v.outer = images;
  v.channels = channels;
  v.size = size;
  v.inner = size[0] * size[1] * size[2];
  return v;
}

inline NormView dense_view(void* data, bool rows, std::int64_t images, std::int64_t channels,
                           const Dims& size) {
  const Strides s = dense(rows, channels, size);
  return {data, images, channels, size[0] * size[1] * size[2], size, s.n, s.c, s.s};
}

// Batch norm's problem with channels [c, c + count) of all images; the caller sets what is normalised.
template <class Norm>
Norm some_channels(const Norm& whole, std::int64_t c, std::int64_t count) {
  Norm q = whole;
  q.x = some(whole.x, whole.dtype, 0, whole.x.outer, c, count, {0, 0, 0}, whole.x.size);
  q.of_channels = whole.x.channels;
  if (q.weight) q.weight += c;
  if (q.bias) q.bias += c;
  q.mean += c;
  q.var += c;
  return q;
}

}  // namespace
}  // namespace convnorm::batch_norm_max_pool
