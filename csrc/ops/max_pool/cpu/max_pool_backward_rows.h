// Backward of max pooling with vectors along the row: NCHW, stride 1 or 2 along the row.
//
//   task    = a group of planes at one depth; row by row, the taps of the output rows that cover the row are
//   listed once
//           and then summed in every plane
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

// A tap of an input row: where a plane has its gradients and codes for slot 0, and the code that names the
// tap.
struct RowTap {
  std::int64_t grad, argmax, code;
  std::int64_t back;  // slot j reads output column j - back
};

constexpr std::int64_t kBackGroup =
    8;  // planes that share a list of taps, and streams that are written in turns

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
  RowTap* tap[kPhases] = {};
  std::int64_t taps[kPhases] = {};
  std::int64_t begin = 0, end = 0;  // slots done in vectors

  void carve(Arena& arena) {
    slabs = list_covering(p, 0, arena);
    rows = list_covering(p, 1, arena);
    for (auto& list : tap)
      list = arena.take<RowTap>(most_covers(p, 0) * most_covers(p, 1) * p.window.kernel[2]);
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

  void list_row(std::int64_t id, std::int64_t ih) {
    const Window& w = p.window;
    for (auto& n : taps) n = 0;
    for (std::int64_t d = slabs.first[id]; d < slabs.first[id + 1]; ++d)
      for (std::int64_t h = rows.first[ih]; h < rows.first[ih + 1]; ++h) {
        const auto [od, td] = slabs.window[d];
        const auto [oh, th] = rows.window[h];
        const std::int64_t grad = od * p.output.s[0] + oh * p.output.s[1];
        const std::int64_t argmax = od * p.argmax.s[0] + oh * p.argmax.s[1];
        for (std::int64_t t = w.kernel[2] - 1; t >= 0; --t) {
          const std::int64_t f = t % kPhases, back = t * w.dil[2] / kPhases;
          const std::int64_t code = kIndex ? (id * p.in[1] + ih) * p.in[2] + column(f, 0)
                                           : (td * w.kernel[1] + th) * w.kernel[2] + t;
          tap[f][taps[f]++] = {grad - back, argmax - back, code, back};
        }
      }
  }

  // Slots j, j + 1, ... of phase f in kVectors vectors.
  template <int kVectors>
  inline __attribute__((always_inline)) void sum(int f, std::int64_t j, const T* grad, const A* argmax,
                                                 vec<C>* total) const {
    for (int u = 0; u < kVectors; ++u) total[u] = vec<C>{};
    for (const RowTap *t = tap[f], *last = t + taps[f]; t != last; ++t) {
      for (int u = 0; u < kVectors; ++u) {
        auto code = splat_code<C>(t->code);
        if constexpr (kIndex)
          for (int lane = 0; lane < kWidth; ++lane)
            code[lane] += static_cast<code_t<C>>((j + u * kWidth + lane) * kPhases);
        const vec<C> g = load(grad + t->grad + j + u * kWidth);
        total[u] += load_codes<C>(argmax + t->argmax + j + u * kWidth) == code ? g : vec<C>{};
      }
    }
  }

  template <int kVectors>
  void spread_slots(std::int64_t j, const T* grad, const A* argmax, T* to) const {
    constexpr auto lane = std::make_integer_sequence<int, kWidth>{};
    vec<C> even[kVectors], odd[kVectors];
    sum<kVectors>(0, j, grad, argmax, even);
    if constexpr (kPhases == 2) sum<kVectors>(1, j, grad, argmax, odd);
    to += column(0, j);
    for (int u = 0; u < kVectors; ++u) {
      if constexpr (kPhases == 1) {
        store(to + u * kWidth, even[u]);
      } else {
        store(to + 2 * u * kWidth, interleave_low(even[u], odd[u], lane));
        store(to + (2 * u + 1) * kWidth, interleave_high(even[u], odd[u], lane));
      }
    }
  }

  // One column, with bounds on both sides.
  void spread_one(int f, std::int64_t j, const T* grad, const A* argmax, T* to) const {
    const std::int64_t i = column(f, j);
    if (i < 0 || i >= p.in[2]) return;
    C total = 0;
    for (std::int64_t k = 0; k < taps[f]; ++k) {
      const RowTap& t = tap[f][k];
      if (j < t.back || j - t.back >= p.out[2]) continue;
      if (argmax[t.argmax + j] == t.code + (kIndex ? j * kPhases : 0)) total += load1(grad + t.grad + j);
    }
    store1(to + i, total);
  }

  void spread(const T* grad, const A* argmax, T* to) const {
    constexpr int kUnrolled = 4 / kPhases;
    const std::int64_t slots = (p.in[2] + p.window.pad[2] + kPhases - 1) / kPhases;
    for (std::int64_t j = 0; j < begin; ++j)
      for (int f = 0; f < kPhases; ++f) spread_one(f, j, grad, argmax, to);
    std::int64_t j = begin;
    for (; j + kUnrolled * kWidth <= end; j += kUnrolled * kWidth)
      spread_slots<kUnrolled>(j, grad, argmax, to);
    for (; j < end; j += kWidth) spread_slots<1>(imin(j, end - kWidth), grad, argmax, to);
    for (j = end; j < slots; ++j)
      for (int f = 0; f < kPhases; ++f) spread_one(f, j, grad, argmax, to);
  }
};

template <class T, class A, int kPhases>
void spread_rows(const Params& p, const T* grad_output, const A* argmax, T* grad_input) {
  const std::int64_t planes = p.n * p.c, groups = ceil_div(planes, kBackGroup);
  parallel_for(groups * p.in[0], 1, [&](std::int64_t begin, std::int64_t end) {
    RowSpread<T, A, kPhases> rows{p};
    Arena arena;
    rows.carve(arena);
    arena = {static_cast<char*>(scratch_bytes(Slot::local, arena.used)), 0};
    rows.carve(arena);
    rows.prepare();
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t first = task / p.in[0] * kBackGroup, count = imin(kBackGroup, planes - first);
      const std::int64_t id = task % p.in[0];
      PlaneStart plane[kBackGroup];
      for (std::int64_t g = 0; g < count; ++g) plane[g] = plane_start(p, first + g);
      for (std::int64_t ih = 0; ih < p.in[1]; ++ih) {
        rows.list_row(id, ih);
        const std::int64_t row = id * p.input.s[0] + ih * p.input.s[1];
        for (std::int64_t g = 0; g < count; ++g)
          rows.spread(grad_output + plane[g].output, argmax + plane[g].argmax,
                      grad_input + plane[g].input + row);
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
