// The gradient of the normalised image is made in scratch memory by max pooling's backward, and batch norm's
// backward takes it from there.
//
//   planes   task = a channel, or some with little data: its gradient in all images, which both sweeps of
//            batch norm read. Its pooled planes are first brought together: one call spreads them all
//   rows     batch norm asks for the rows of each of its tiles, once for the sums and once to write. They are
//            whole rows of the image, and whole windows where windows do not overlap: max pooling's kernel
//            for these takes no parts of them
#include "cpu/nested_scratch.h"
#include "ops/batch_norm_max_pool/cpu/batch_norm_max_pool_parts.h"

#include <cstring>

namespace convnorm::batch_norm_max_pool {
namespace {

constexpr std::int64_t kTask = 16384;       // values: channels with fewer are taken together, ...
constexpr std::int64_t kMostChannels = 16;  // ... so many at most

// --- planes --------------------------------------------------------------------------------------

// Pooled planes of channels [c, c + count) of all images and their codes, so that one call spreads them all.
void bring_together(const Backward& p, std::int64_t c, std::int64_t count, char* pooled, char* argmax) {
  const std::int64_t size = count * p.pool.out[0] * p.pool.out[1] * p.pool.out[2];
  const std::int64_t values = size * bytes(p.pool.dtype), codes = size * code_bytes(p.pool.record);
  for (std::int64_t n = 0; n < p.pool.n; ++n, pooled += values, argmax += codes) {
    const std::int64_t from = n * p.pool.output.n + c * p.pool.output.c;
    std::memcpy(pooled, at_element(p.grad_output, from, p.pool.dtype), values);
    std::memcpy(argmax, static_cast<const char*>(p.argmax) + from * code_bytes(p.pool.record), codes);
  }
}

void channels_of(const Backward& p, std::int64_t c, std::int64_t count, const bn::Kernels& norm) {
  mp::Params pool = p.pool;
  pool.c = count;
  pool.input = dense(false, count, pool.in);
  pool.output = pool.argmax = dense(false, count, pool.out);
  const auto room = [](std::int64_t size) { return (size + 63) / 64 * 64; };
  const std::int64_t gradient = room(pool.n * pool.input.n * bytes(pool.dtype));
  const std::int64_t values = room(pool.n * pool.output.n * bytes(pool.dtype));
  const std::int64_t codes = pool.n * pool.output.n * code_bytes(pool.record);
  auto* const base = static_cast<char*>(scratch_bytes(Slot::rewritten, gradient + values + codes));
  char *const pooled = base + gradient, *const argmax = pooled + values;
  bring_together(p, c, count, pooled, argmax);
  pick("max_pool_backward", mp::backward_kernels(), pool)(pool, pooled, argmax, base);

  bn::Backward q = some_channels(p.norm, c, count);
  q.grad_output = dense_view(base, false, pool.n, count, pool.in);
  const NormView& to = p.norm.grad_input;
  if (to.data) q.grad_input = some(to, q.dtype, 0, to.outer, c, count, {0, 0, 0}, to.size);
  q.grad_weight += c;
  q.grad_bias += c;
  norm.backward_planes(q);
}

// --- rows ----------------------------------------------------------------------------------------

// Rows of pixels are numbered through all slabs (depths of an image) of all images.
struct Lines {
  const Backward& p;
  const mp::Params& pool = p.pool;
  bool apart = reach(pool.window, 1) <= pool.window.stride[1];

  std::int64_t window_above(std::int64_t h) const {
    return std::min(pool.out[1] - 1, (h + pool.window.pad[1]) / pool.window.stride[1]);
  }
  // Where the row's windows begin, and where those of its last row end.
  std::int64_t first(std::int64_t line) const {
    const std::int64_t h = line % pool.in[1];
    return apart ? line - h + std::max<std::int64_t>(0, mp::at(pool, 1, window_above(h), 0)) : line;
  }
  std::int64_t end(std::int64_t last) const {
    const std::int64_t h = last % pool.in[1], next = window_above(h) + 1;
    if (!apart) return last + 1;
    return last - h + (next < pool.out[1] ? mp::at(pool, 1, next, 0) : pool.in[1]);
  }

  // The windows that cover some of input coordinates [in.begin, in.end).
  Span windows(int d, const Span& in) const {
    const std::int64_t stride = pool.window.stride[d];
    const std::int64_t low = in.begin + pool.window.pad[d] - (reach(pool.window, d) - 1);
    return {low > 0 ? ceil_div(low, stride) : 0,
            std::min(pool.out[d], (in.end - 1 + pool.window.pad[d]) / stride + 1)};
  }

  // Rows h of slab d of image n, `channels` from c on.
  void make(std::int64_t n, std::int64_t d, const Span& h, std::int64_t c, std::int64_t channels,
            char* to) const {
    mp::Params q = pool;
    q.n = 1;
    q.c = channels;
    q.in = {1, h.size(), pool.in[2]};
    const Span od = windows(0, {d, d + 1}), oh = windows(1, h);
    q.input = dense(true, channels, q.in);
    if (od.size() <= 0 || oh.size() <= 0)
      return void(std::memset(to, 0, mp::plane(q) * channels * bytes(q.dtype)));
    q.out = {od.size(), oh.size(), pool.out[2]};
    q.window.pad[0] = d - mp::at(pool, 0, od.begin, 0);
    q.window.pad[1] = h.begin - mp::at(pool, 1, oh.begin, 0);
    const std::int64_t from =
        n * q.output.n + c * q.output.c + od.begin * q.output.s[0] + oh.begin * q.output.s[1];
    auto run = pick("max_pool_backward", mp::backward_kernels(), q);
    // Where both depth and height are cut, a tap outside may have the place of another one inside.
    if (run == mp::backward_scatter && pool.in[0] > 1) run = mp::backward_direct;
    run(q, at_element(p.grad_output, from, q.dtype),
        static_cast<const char*>(p.argmax) + from * code_bytes(q.record), to);
  }

  // Lines [begin, stop).
  void make_all(std::int64_t begin, std::int64_t stop, std::int64_t c, std::int64_t channels,
                char* to) const {
    const std::int64_t line_bytes = pool.in[2] * channels * bytes(pool.dtype);
    for (std::int64_t line = begin; line < stop;) {
      const std::int64_t slab = line / pool.in[1], h = line % pool.in[1];
      const std::int64_t rows = std::min(stop - line, pool.in[1] - h);
      make(slab / pool.in[0], slab % pool.in[0], {h, h + rows}, c, channels, to);
      to += rows * line_bytes;
      line += rows;
    }
  }
};

NormView make_rows(const void* context, std::int64_t row, std::int64_t rows, std::int64_t channel,
                   std::int64_t channels) {
  const Lines lines{*static_cast<const Backward*>(context)};
  const std::int64_t width = lines.pool.in[2];
  const std::int64_t first = lines.first(row / width), end = lines.end((row + rows - 1) / width);
  const DType dtype = lines.pool.dtype;
  auto* const to =
      static_cast<char*>(scratch_bytes(Slot::rewritten, (end - first) * width * channels * bytes(dtype)));
  const NestedScratch nested;
  lines.make_all(first, end, channel, channels, to);
  NormView view;
  view.data = at_element(to, -(first * width * channels + channel), dtype);
  view.outer = (end - first) * width;
  view.channels = channels;
  view.outer_stride = channels;
  view.channel_stride = 1;
  return view;
}

}  // namespace

void backward_planes(const Backward& p, const bn::Kernels& norm) {
  const std::int64_t channels = p.norm.x.channels;
  const std::int64_t width =
      std::min({channels, kMostChannels, std::max<std::int64_t>(1, kTask / p.norm.x.values())});
  parallel_for(ceil_div(channels, width), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin * width; c < std::min(channels, end * width); c += width)
      channels_of(p, c, std::min(width, channels - c), norm);
  });
}

void backward_rows(const Backward& p, const bn::Kernels& norm) {
  bn::Backward q = p.norm;
  q.made = {make_rows, &p};
  norm.backward_rows(q);
}

}  // namespace convnorm::batch_norm_max_pool
