// The definitions of max_pool.h as plain loops, for every problem: slow, and meant to be read.
// They also serve windows that lie in the padding altogether, which the fast kernels refuse.
#include "ops/max_pool/max_pool.h"

#include "cpu/target_generic.h"

#include "ops/max_pool/cpu/max_pool_scalar.h"

namespace convnorm::max_pool {
namespace {

// What is recorded before any tap was taken: the first one at coordinates >= 0.
std::int64_t first_code(const Params& p, const Dims& o) {
  Dims t, i;
  for (int d = 0; d < kSpatial; ++d) {
    t[d] = taps_inside(p, d, o[d]).begin;
    i[d] = at(p, d, o[d], t[d]);
  }
  return code_of(p, t, i);
}

template <class T>
void pool_plane(const Params& p, std::int64_t n, std::int64_t c, const T* input, T* output, void* argmax) {
  using C = compute_t<T>;
  each_output(p, [&](const Dims& o) {
    C best = -std::numeric_limits<C>::infinity();
    std::int64_t code = first_code(p, o);
    each_tap(p, o, [&](const Dims& t, const Dims& i) {
      const C x = load1(input + element(p.input, n, c, i));
      if (x > best || x != x) {
        best = x;
        code = code_of(p, t, i);
      }
    });
    store1(output + element(p.output, n, c, o), best);
    if (p.record != Argmax::none) write_code(p.record, argmax, element(p.argmax, n, c, o), code);
  });
}

template <class T>
void spread_plane(const Params& p, std::int64_t n, std::int64_t c, const T* grad_output, const void* argmax,
                  T* grad_input) {
  using C = compute_t<T>;
  C* sums = static_cast<C*>(scratch_bytes(Slot::local, plane(p) * sizeof(C)));
  for (std::int64_t i = 0; i < plane(p); ++i) sums[i] = 0;
  each_output(p, [&](const Dims& o) {
    const std::int64_t code = read_code(p.record, argmax, element(p.argmax, n, c, o));
    const C g = load1(grad_output + element(p.output, n, c, o));
    each_tap(p, o, [&](const Dims& t, const Dims& i) {
      if (code == code_of(p, t, i)) sums[(i[0] * p.in[1] + i[1]) * p.in[2] + i[2]] += g;
    });
  });
  T* to = grad_input + n * p.input.n + c * p.input.c;
  for (std::int64_t i = 0; i < plane(p); ++i) store1(to + i * p.input.s[2], sums[i]);
}

// The coordinates a record names.
Dims named(const Params& p, const Dims& o, std::int64_t code) {
  const Dims& size = p.record == Argmax::index64 ? p.in : p.window.kernel;
  const Dims t{code / size[2] / size[1], code / size[2] % size[1], code % size[2]};
  if (p.record == Argmax::index64) return t;
  return {at(p, 0, o[0], t[0]), at(p, 1, o[1], t[1]), at(p, 2, o[2], t[2])};
}

bool inside(const Params& p, const Dims& i) {
  for (int d = 0; d < kSpatial; ++d)
    if (i[d] < 0 || i[d] >= p.in[d]) return false;
  return true;
}

}  // namespace

void forward_direct(const Params& p, const void* input, void* output, void* argmax) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    each_plane(p, [&](std::int64_t n, std::int64_t c) {
      pool_plane(p, n, c, static_cast<const T*>(input), static_cast<T*>(output), argmax);
    });
  });
}

void backward_direct(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    each_plane(p, [&](std::int64_t n, std::int64_t c) {
      spread_plane(p, n, c, static_cast<const T*>(grad_output), argmax, static_cast<T*>(grad_input));
    });
  });
}

void gather(const Params& p, const void* x, const void* argmax, void* values) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    each_plane(p, [&](std::int64_t n, std::int64_t c) {
      each_output(p, [&](const Dims& o) {
        const Dims i = named(p, o, read_code(p.record, argmax, element(p.argmax, n, c, o)));
        T& value = static_cast<T*>(values)[element(p.output, n, c, o)];
        if (inside(p, i))
          value = static_cast<const T*>(x)[element(p.input, n, c, i)];
        else
          value = T{};
      });
    });
  });
}

bool some_window_is_empty(const Params& p) {
  for (int d = 0; d < kSpatial; ++d)
    for (std::int64_t o = 0; o < p.out[d]; ++o) {
      if (at(p, d, o, 0) >= 0)
        break;  // later windows start inside the image: the last one does by the size rule
      const Taps taps = taps_inside(p, d, o);
      if (taps.begin >= taps.end) return true;
    }
  return false;
}

}  // namespace convnorm::max_pool
