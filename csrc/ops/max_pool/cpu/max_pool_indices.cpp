// What works by indices into the plane (adaptive_max_pool.h): spread, place, pick. Addresses come from memory
// one by one, so this is scalar code.
//
// Task = one plane, or in channels_last a slab of channels of one image, whose indices and values are then
// read in the order of memory. Small planes that follow each other are filled in blocks. Sums of 16-bit
// values are kept in float and rounded once.
#include "ops/max_pool/adaptive_max_pool.h"

#include "cpu/target_generic.h"

#include "ops/max_pool/cpu/max_pool_scalar.h"

namespace convnorm::max_pool {
namespace {

// Channels of a task in channels_last: many, since positions are often a multiple of the cache's stride
// apart, but few enough for four tasks.
inline std::int64_t slab_size(const Params& p) {
  return imin(512, imax(64, ceil_div(p.n * p.c, 4 * 64) * 64));
}

// f(task, image, first channel, channels) in parallel.
struct Tasks {
  std::int64_t slab, slabs, count;
  explicit Tasks(const Params& p) {
    slab = p.output.c == 1 && p.input.c == 1 ? slab_size(p) : 1;
    slabs = ceil_div(p.c, slab);
    count = p.n * slabs;
  }
  template <class F>
  void run(const Params& p, F&& f) const {
    const std::int64_t work = slab * (plane(p) + p.out[0] * p.out[1] * p.out[2]);
    parallel_for(count, ceil_div(32768, work + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t c = t % slabs * slab;
        f(t, t / slabs, c, imin(slab, p.c - c));
      }
    });
  }
};

// f(value, index, number) for n values and their indices. Dense rows, which are common, have a loop of their
// own: multiplying by the distances took a third of the time.
template <class T, class F>
inline void each_in_row(T* values, std::int64_t value_step, const std::int64_t* indices,
                        std::int64_t index_step, std::int64_t n, F&& f) {
  if (value_step == 1 && index_step == 1)
    for (std::int64_t i = 0; i < n; ++i) f(values[i], indices[i], i);
  else
    for (std::int64_t i = 0; i < n; ++i) f(values[i * value_step], indices[i * index_step], i);
}

// f(value, index, channel of the slab) for every value of a slab, outputs in row-major order.
template <class T, class F>
inline void each_index(const Params& p, std::int64_t n, std::int64_t c, std::int64_t channels, T* values,
                       const std::int64_t* indices, F&& f) {
  const std::int64_t value_c = p.output.c, index_c = p.argmax.c, value_w = p.output.s[2],
                     index_w = p.argmax.s[2], out_w = p.out[2];
  for (std::int64_t od = 0; od < p.out[0]; ++od)
    for (std::int64_t oh = 0; oh < p.out[1]; ++oh) {
      T* value = values + element(p.output, n, c, {od, oh, 0});
      const std::int64_t* index = indices + element(p.argmax, n, c, {od, oh, 0});
      if (channels == 1) {
        each_in_row(value, value_w, index, index_w, out_w,
                    [&](T& x, std::int64_t i, std::int64_t) { f(x, i, 0); });
        continue;
      }
      for (std::int64_t ow = 0; ow < out_w; ++ow, value += value_w, index += index_w)
        each_in_row(value, value_c, index, index_c, channels, f);
    }
}

// Also false for negative ones.
inline bool inside(std::int64_t index, std::int64_t positions) {
  return static_cast<std::uint64_t>(index) < static_cast<std::uint64_t>(positions);
}

// Zeros the planes of a slab. By the task that fills them: what it writes next is then in cache.
template <class T>
void clear_slab(std::int64_t positions, std::int64_t step, std::int64_t channels, T* to) {
  if (step == 1 || step == channels)
    std::memset(to, 0, positions * channels * sizeof(T));
  else
    for (std::int64_t i = 0; i < positions; ++i) std::memset(to + i * step, 0, channels * sizeof(T));
}

// The same values and indices as one run of outputs, where memory allows.
inline Params as_run(Params p) {
  const auto dense = [&p](const Strides& s) {
    return (p.out[1] == 1 || s.s[1] == p.out[2] * s.s[2]) &&
           (p.out[0] == 1 || s.s[0] == p.out[1] * p.out[2] * s.s[2]);
  };
  if (dense(p.output) && dense(p.argmax)) p.out = {1, 1, p.out[0] * p.out[1] * p.out[2]};
  return p;
}

template <class T>
void spread_slab(const Params& p, std::int64_t n, std::int64_t c, std::int64_t channels, const T* values,
                 const std::int64_t* indices, T* to) {
  using C = compute_t<T>;
  const std::int64_t positions = plane(p), step = p.input.s[2];
  const bool direct = std::is_same_v<T, C>;
  C* sums = direct ? reinterpret_cast<C*>(to)
                   : static_cast<C*>(scratch_bytes(Slot::local, positions * channels * sizeof(C)));
  const std::int64_t sum_step = direct ? step : channels;
  clear_slab(positions, sum_step, channels, sums);
  each_index(p, n, c, channels, values, indices, [&](const T& value, std::int64_t index, std::int64_t k) {
    if (inside(index, positions)) sums[index * sum_step + k] += load1(&value);
  });
  if (direct) return;
  for (std::int64_t i = 0; i < positions; ++i)
    for (std::int64_t k = 0; k < channels; ++k) store1(to + i * step + k, sums[i * channels + k]);
}

constexpr std::int64_t kBlockBytes = 16384;  // of sums: cleared and filled while they are in L1

// Planes, values and indices of all images are one run of memory each.
inline bool consecutive(const Params& p) {
  const auto run = [&p](const Strides& s, std::int64_t length) {
    return (length == 1 || s.s[2] == 1) && (p.c == 1 || s.c == length) && (p.n == 1 || s.n == p.c * length);
  };
  const std::int64_t outputs = p.out[2];
  return p.out[0] * p.out[1] == 1 && run(p.input, plane(p)) && run(p.output, outputs) &&
         run(p.argmax, outputs);
}

// Planes [begin, end) of a consecutive problem, cleared by one call and filled by one loop: a call per plane
// takes longer than a plane of 7x7.
template <class T>
void spread_block(const Params& p, std::int64_t begin, std::int64_t end, const T* values,
                  const std::int64_t* indices, T* to) {
  using C = compute_t<T>;
  const std::int64_t positions = plane(p), outputs = p.out[2], size = (end - begin) * positions;
  const bool direct = std::is_same_v<T, C>;
  to += begin * positions;
  C* const sums =
      direct ? reinterpret_cast<C*>(to) : static_cast<C*>(scratch_bytes(Slot::local, size * sizeof(C)));
  std::memset(sums, 0, size * sizeof(C));
  values += begin * outputs, indices += begin * outputs;
  for (C* sum = sums; sum < sums + size; sum += positions, values += outputs, indices += outputs)
    for (std::int64_t o = 0; o < outputs; ++o)
      if (inside(indices[o], positions)) sum[indices[o]] += load1(values + o);
  for (std::int64_t i = 0; i < size && !direct; ++i) store1(to + i, sums[i]);
}

// The element of the plane that an index names, for any strides.
struct Locate {
  const Params& p;
  bool dense;
  explicit Locate(const Params& params) : p(params) {
    const Strides& s = p.input;
    dense = (p.in[1] == 1 || s.s[1] == p.in[2] * s.s[2]) &&
            (p.in[0] == 1 || s.s[0] == p.in[1] * p.in[2] * s.s[2]);
  }
  std::int64_t operator()(std::int64_t index) const {
    if (dense) return index * p.input.s[2];
    const std::int64_t w = index % p.in[2], row = index / p.in[2];
    return row / p.in[1] * p.input.s[0] + row % p.in[1] * p.input.s[1] + w * p.input.s[2];
  }
};

}  // namespace

void spread_indices(const Params& problem, const void* values, const void* indices, void* plane_of) {
  const Params p = as_run(problem);
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    if (consecutive(p)) {
      const std::int64_t positions = plane(p), count = p.n * p.c;
      const std::int64_t block = imax(1, kBlockBytes / (positions * std::int64_t(sizeof(compute_t<T>))));
      parallel_for(ceil_div(count, block), ceil_div(32768, block * (positions + p.out[2])),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t first = begin * block; first < imin(count, end * block);
                          first += block)
                       spread_block(p, first, imin(count, first + block), static_cast<const T*>(values),
                                    static_cast<const std::int64_t*>(indices), static_cast<T*>(plane_of));
                   });
      return;
    }
    Tasks(p).run(p, [&](std::int64_t, std::int64_t n, std::int64_t c, std::int64_t channels) {
      spread_slab(p, n, c, channels, static_cast<const T*>(values), static_cast<const std::int64_t*>(indices),
                  static_cast<T*>(plane_of) + n * p.input.n + c * p.input.c);
    });
  });
}

void pick_indices(const Params& problem, const void* plane, const void* indices, void* values) {
  const Params p = as_run(problem);
  const Locate locate(p);
  const std::int64_t positions = p.in[0] * p.in[1] * p.in[2], step_c = p.input.c;
  const bool plain = locate.dense && p.input.s[2] == 1;
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    Tasks(p).run(p, [&](std::int64_t, std::int64_t n, std::int64_t c, std::int64_t channels) {
      const T* from = static_cast<const T*>(plane) + n * p.input.n + c * p.input.c;
      T* to = static_cast<T*>(values);
      const auto* at = static_cast<const std::int64_t*>(indices);
      if (plain && channels == 1) {  // the index is the place
        each_index(p, n, c, 1, to, at, [from, positions](T& value, std::int64_t index, std::int64_t) {
          value = inside(index, positions) ? from[index] : T{};
        });
        return;
      }
      each_index(p, n, c, channels, to, at, [&](T& value, std::int64_t index, std::int64_t k) {
        value = inside(index, positions) ? from[locate(index) + k * step_c] : T{};
      });
    });
  });
}

BadIndex place_indices(const Params& problem, const void* values, const void* indices, void* plane_of) {
  const Params p = as_run(problem);
  const Tasks tasks(p);
  auto* bad = static_cast<BadIndex*>(scratch_bytes(Slot::shared, tasks.count * sizeof(BadIndex)));
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    tasks.run(p, [&](std::int64_t task, std::int64_t n, std::int64_t c, std::int64_t channels) {
      T* to = static_cast<T*>(plane_of) + n * p.input.n + c * p.input.c;
      const std::int64_t step = p.input.s[2], positions = plane(p);
      BadIndex first;
      clear_slab(positions, step, channels, to);
      each_index(p, n, c, channels, static_cast<const T*>(values), static_cast<const std::int64_t*>(indices),
                 [&](const T& value, std::int64_t index, std::int64_t k) {
                   if (inside(index, positions))
                     to[index * step + k] = value;
                   else if (!first.found)
                     first = {true, index};
                 });
      bad[task] = first;
    });
  });
  for (std::int64_t task = 0; task < tasks.count; ++task)
    if (bad[task].found) return bad[task];
  return {};
}

}  // namespace convnorm::max_pool
