// Statistics, then part by part (batch_norm_max_pool_parts.h): normalise into scratch memory, pool from it.
//
// Where a channel has large planes, its statistics and its parts follow each other, as in batch norm, so that
// the second reading of x finds it in L2. Else all statistics come first, and parts go backwards from what
// was read last.
#include "ops/batch_norm_max_pool/cpu/batch_norm_max_pool_parts.h"

namespace convnorm::batch_norm_max_pool {
namespace {

constexpr std::int64_t kTogether = 4;         // planes, for max pooling that has several in one vector
constexpr std::int64_t kLargePlane = 4096;    // values
constexpr std::int64_t kEnoughChannels = 64;  // tasks enough for a machine

// How some channels of all images are cut: a part is `images` by `channels` by `depth` by `height` outputs.
struct Cut {
  std::int64_t images, channels, depth, height;
  std::int64_t batches, groups, deep, bands;  // how many of each

  Cut(const Forward& p, std::int64_t all_channels) {
    const mp::Params& pool = p.pool;
    const bool overlap = reach(pool.window, 2) > pool.window.stride[2];
    const std::int64_t size = mp::plane(pool);
    const std::int64_t planes = std::max(kPart / size, overlap ? kTogether : 1);
    channels = p.norm.rows ? all_channels : std::min(planes, all_channels);
    images = p.norm.rows || all_channels > 1 ? 1 : std::min(planes, pool.n);
    const std::int64_t side_by_side = images * channels;
    const bool whole = size * side_by_side <= kWhole;
    depth = whole ? pool.out[0] : 1;
    const std::int64_t line = pool.in[2] * side_by_side * std::min(pool.in[0], reach(pool.window, 0));
    const std::int64_t rows = (kPart / line - reach(pool.window, 1)) / pool.window.stride[1] + 1;
    bands = whole ? 1 : ceil_div(pool.out[1], std::clamp<std::int64_t>(rows, 1, pool.out[1]));
    height = ceil_div(pool.out[1], bands);
    batches = ceil_div(pool.n, images);
    groups = ceil_div(all_channels, channels);
    deep = ceil_div(pool.out[0], depth);
    bands = ceil_div(pool.out[1], height);
  }
  std::int64_t parts() const { return batches * groups * deep * bands; }
};

struct Part {
  std::int64_t n, images, c, channels;
  Span d, h;  // outputs
};

inline Span piece(std::int64_t i, std::int64_t step, std::int64_t all) {
  return {i * step, std::min((i + 1) * step, all)};
}

struct Walk {
  const Forward& p;
  void (*const normalise)(const bn::Forward&);

  // Input coordinates [from, from + size) of the part, into `to`, dense.
  void normalise_into(void* to, const Part& part, const Dims& from, const Dims& size) const {
    bn::Forward q = some_channels(p.norm, part.c, part.channels);
    q.train = false;
    q.of_channels = 0;  // nothing that stays in cache is written around it
    // Slabs of which the part has all rows are one run of memory.
    const std::int64_t together = size[1] == p.pool.in[1] ? size[0] : 1;
    const Strides s = dense(p.norm.rows, part.channels, size);
    for (std::int64_t d = 0; d < size[0]; d += together) {
      const Dims slab{together, size[1], size[2]};
      q.x = some(p.norm.x, p.norm.dtype, part.n, part.images, part.c, part.channels,
                 {from[0] + d, from[1], 0}, slab);
      q.out =
          dense_view(at_element(to, d * s.s[0], p.norm.dtype), p.norm.rows, part.images, part.channels, slab);
      q.out.outer_stride = s.n;
      q.out.channel_stride = s.c;
      normalise(q);
    }
  }

  void run(const Part& part) const {
    const Span d = covered(p.pool, 0, part.d), h = covered(p.pool, 1, part.h);
    mp::Params q = p.pool;
    q.n = part.images;
    q.c = part.channels;
    q.in = {d.size(), h.size(), p.pool.in[2]};
    q.out = {part.d.size(), part.h.size(), p.pool.out[2]};
    q.window.pad[0] = d.begin - mp::at(p.pool, 0, part.d.begin, 0);
    q.window.pad[1] = h.begin - mp::at(p.pool, 1, part.h.begin, 0);
    q.input = dense(p.norm.rows, part.channels, q.in);
    void* const y = scratch_bytes(Slot::rewritten, mp::plane(q) * q.c * q.n * bytes(q.dtype));
    normalise_into(y, part, {d.begin, h.begin, 0}, q.in);
    const auto start = [&](const Strides& s) {
      return part.n * s.n + part.c * s.c + part.d.begin * s.s[0] + part.h.begin * s.s[1];
    };
    void* const output = at_element(p.output, start(q.output), q.dtype);
    void* const argmax = q.record == mp::Argmax::none
                             ? nullptr
                             : static_cast<char*>(p.argmax) + start(q.argmax) * code_bytes(q.record);
    pick("max_pool_forward", mp::forward_kernels(), q)(q, y, output, argmax);
  }

  // Channels [c, c + count) of all images, whose statistics are there; the last ones first.
  void all_parts(std::int64_t c, std::int64_t count) const {
    const Cut cut(p, count);
    const mp::Params& pool = p.pool;
    parallel_for(cut.parts(), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = end - 1; t >= begin; --t) {
        const std::int64_t batch = t / cut.bands / cut.deep / cut.groups;
        const Span n = piece(batch, cut.images, pool.n),
                   group = piece(t / cut.bands / cut.deep % cut.groups, cut.channels, count);
        run({n.begin, n.size(), c + group.begin, group.size(),
             piece(t / cut.bands % cut.deep, cut.depth, pool.out[0]),
             piece(t % cut.bands, cut.height, pool.out[1])});
      }
    });
  }
};

}  // namespace

void forward_planes(const Forward& p, const bn::Kernels& norm) {
  const Walk walk{p, norm.forward_planes};
  const std::int64_t channels = p.norm.x.channels;
  if (!p.norm.train) return walk.all_parts(0, channels);
  if (channels < kEnoughChannels || p.norm.x.inner < kLargePlane) {
    norm.forward_planes(p.norm);
    return walk.all_parts(0, channels);
  }
  parallel_for(channels, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      norm.forward_planes(some_channels(p.norm, c, 1));
      walk.all_parts(c, 1);
    }
  });
}

void forward_rows(const Forward& p, const bn::Kernels& norm) {
  if (p.norm.train) norm.forward_rows(p.norm);
  Walk{p, norm.forward_rows}.all_parts(0, p.norm.x.channels);
}

}  // namespace convnorm::batch_norm_max_pool
