// Backward of max pooling with vectors along the row: NCHW, stride 1 or 2 along the row.
//
//   task    = one plane (n, c) and depth, all its input rows; each row looks at the output rows that cover it
//   sums    column  f*dil % stride + stride*j - pad  is slot j of phase f; there tap t of phase t % phases
//   reads output
//           column j - t*dil / stride. So every tap is a run of consecutive gradients, added where the
//           recorded code names it. Taps go down, so that windows go up: the order of all kernels
//   borders the slots [begin, end) at which every tap has its output column and every phase its input column
//   are done
//           in vectors (the last overlaps the one before it), those at both ends one by one
//
// Each gradient is written once; two phases are interleaved in registers.
#pragma once

namespace convnorm::max_pool {
namespace {

template <class V, int... i>
inline V interleave_low(V a, V b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i / 2 + i % 2 * int(sizeof...(i)))...);
}
template <class V, int... i>
inline V interleave_high(V a, V b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i / 2 + int(sizeof...(i)) / 2 + i % 2 * int(sizeof...(i)))...);
}

// A tap of an input row: the gradients and codes of slot 0, and the code that names the tap.
template <class T, class A>
struct RowTap {
  const T* grad;
  const A* argmax;
  std::int64_t code;
  std::int64_t back;  // slot j reads output column j - back
};

// The output rows (or slabs) that cover each input row (slab): [first[i], first[i + 1]) of window.
struct Covering {
  struct Window {
    std::int64_t o, tap;
  };
  Window* window;
  std::int64_t* first;
};

inline Covering list_covering(const Params& p, int d, Arena& arena) {
  Covering list;
  list.window = arena.take<Covering::Window>(p.in[d] * most_covers(p, d));
  list.first = arena.take<std::int64_t>(p.in[d] + 1);
  if (!arena.base) return list;
  std::int64_t n = 0;
  for (std::int64_t i = 0; i < p.in[d]; ++i) {
    list.first[i] = n;
    covering(p, d, i, [&](std::int64_t o, std::int64_t tap) { list.window[n++] = {o, tap}; });
  }
  list.first[p.in[d]] = n;
  return list;
}

template <class T, class A, int kPhases>
struct RowSpread {
  using C = compute_t<T>;
  static constexpr bool kIndex = std::is_same_v<A, std::int64_t>;
  static constexpr int kWidth = kLanes<C>;

  const Params& p;
  Covering slabs{}, rows{};
  RowTap<T, A>* tap[kPhases] = {};
  std::int64_t taps[kPhases] = {};
  std::int64_t begin = 0, end = 0;  // slots done in vectors

  void carve(Arena& arena) {
    slabs = list_covering(p, 0, arena);
    rows = list_covering(p, 1, arena);
    for (auto& list : tap)
      list = arena.take<RowTap<T, A>>(most_covers(p, 0) * most_covers(p, 1) * p.window.kernel[2]);
  }

  std::int64_t phase(std::int64_t f) const { return f * p.window.dil[2] % p.window.stride[2]; }
  std::int64_t column(std::int64_t f, std::int64_t j) const {
    return phase(f) + kPhases * j - p.window.pad[2];
  }

  void prepare() {
    begin = (p.window.kernel[2] - 1) * p.window.dil[2] / kPhases;
    end = p.out[2];
    for (int f = 0; f < kPhases; ++f) {
      const Slots inside = slots_inside(column(f, 0), kPhases, p.in[2], p.out[2]);
      begin = imax(begin, inside.begin);
      end = imin(end, inside.end);
    }
    if (end - begin < kWidth) begin = end = 0;
  }

  void list_row(std::int64_t id, std::int64_t ih, const T* grad, const A* argmax) {
    const Window& w = p.window;
    for (auto& n : taps) n = 0;
    for (std::int64_t d = slabs.first[id]; d < slabs.first[id + 1]; ++d)
      for (std::int64_t h = rows.first[ih]; h < rows.first[ih + 1]; ++h) {
        const auto [od, td] = slabs.window[d];
        const auto [oh, th] = rows.window[h];
        const T* g = grad + od * p.output.s[0] + oh * p.output.s[1];
        const A* a = argmax + od * p.argmax.s[0] + oh * p.argmax.s[1];
        for (std::int64_t t = w.kernel[2] - 1; t >= 0; --t) {
          const std::int64_t f = t % kPhases, back = t * w.dil[2] / kPhases;
          const std::int64_t code = kIndex ? (id * p.in[1] + ih) * p.in[2] + column(f, 0)
                                           : (td * w.kernel[1] + th) * w.kernel[2] + t;
          tap[f][taps[f]++] = {g - back, a - back, code, back};
        }
      }
  }

  inline __attribute__((always_inline)) vec<C> sum(int f, std::int64_t j) const {
    vec<C> total{};
    for (std::int64_t k = 0; k < taps[f]; ++k) {
      const RowTap<T, A>& t = tap[f][k];
      auto code = splat_code<C>(t.code);
      if constexpr (kIndex)
        for (int lane = 0; lane < kWidth; ++lane) code[lane] += static_cast<code_t<C>>((j + lane) * kPhases);
      total += load_codes<C>(t.argmax + j) == code ? load(t.grad + j) : vec<C>{};
    }
    return total;
  }

  // Column f, j alone, with bounds on both sides.
  void one(int f, std::int64_t j, T* to) const {
    const std::int64_t i = column(f, j);
    if (i < 0 || i >= p.in[2]) return;
    C total = 0;
    for (std::int64_t k = 0; k < taps[f]; ++k) {
      const RowTap<T, A>& t = tap[f][k];
      if (j < t.back || j - t.back >= p.out[2]) continue;
      if (t.argmax[j] == t.code + (kIndex ? j * kPhases : 0)) total += load1(t.grad + j);
    }
    store1(to + i, total);
  }

  void spread(T* to) const {
    constexpr auto lane = std::make_integer_sequence<int, kWidth>{};
    const std::int64_t slots = (p.in[2] + p.window.pad[2] + kPhases - 1) / kPhases;
    for (std::int64_t j = 0; j < begin; ++j)
      for (int f = 0; f < kPhases; ++f) one(f, j, to);
    for (std::int64_t i = begin; i < end; i += kWidth) {
      const std::int64_t j = imin(i, end - kWidth);
      if constexpr (kPhases == 1) {
        store(to + column(0, j), sum(0, j));
      } else {
        const vec<C> even = sum(0, j), odd = sum(1, j);
        store(to + column(0, j), interleave_low(even, odd, lane));
        store(to + column(0, j) + kWidth, interleave_high(even, odd, lane));
      }
    }
    for (std::int64_t j = end; j < slots; ++j)
      for (int f = 0; f < kPhases; ++f) one(f, j, to);
  }
};

template <class T, class A, int kPhases>
void spread_rows(const Params& p, const T* grad_output, const A* argmax, T* grad_input) {
  const std::int64_t slab = p.in[1] * p.in[2];
  parallel_for(p.n * p.c * p.in[0], ceil_div(32768, slab), [&](std::int64_t begin, std::int64_t end) {
    RowSpread<T, A, kPhases> rows{p};
    Arena arena;
    rows.carve(arena);
    arena = {static_cast<char*>(scratch_bytes(Slot::local, arena.used)), 0};
    rows.carve(arena);
    rows.prepare();
    for (std::int64_t task = begin; task < end; ++task) {
      const PlaneStart plane = plane_start(p, task / p.in[0]);
      const std::int64_t id = task % p.in[0];
      for (std::int64_t ih = 0; ih < p.in[1]; ++ih) {
        rows.list_row(id, ih, grad_output + plane.output, argmax + plane.argmax);
        rows.spread(grad_input + plane.input + id * p.input.s[0] + ih * p.input.s[1]);
      }
    }
  });
}

void backward_rows(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto t) {
    with_argmax(p.record, [&](auto* a) {
      using T = decltype(t);
      using A = std::remove_pointer_t<decltype(a)>;
      if constexpr (!std::is_void_v<A>) {
        const auto spread = p.window.stride[2] == 1 ? spread_rows<T, A, 1> : spread_rows<T, A, 2>;
        spread(p, static_cast<const T*>(grad_output), static_cast<const A*>(argmax),
               static_cast<T*>(grad_input));
      }
    });
  });
}

}  // namespace
}  // namespace convnorm::max_pool
