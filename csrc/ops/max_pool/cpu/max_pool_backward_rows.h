// Backward of max pooling with vectors along the row: NCHW, and gradients of any strides.
//
//   task    = a group of planes side by side, as in the forward (max_pool_rows.h), and a block of input rows
//   packing an output row of gradients and codes goes to scratch once, `shift` zeros in front of each plane's part
//   summing slot j of phase f of an input row is the column  f*dil % stride + stride*j - pad;  tap t of phase t % phases
//           reads slot j - t*dil/stride of the output row: every tap is a run of consecutive gradients, added where the
//           code names it. Taps go down, so that windows go up: the order of all kernels
//   storing one phase (stride 1) or two interleaved (stride 2); columns that no window reaches are zero
//
// Each gradient is written once.
#pragma once

namespace convnorm::max_pool {
namespace {

constexpr std::int64_t kBackTarget = 512;  // slots side by side: with two rows of gradients and codes, 16 KB

struct BackPlan {
  std::int64_t planes, group, groups;
  std::int64_t phases, shift, segment, row;  // as in RowPlan, over the whole width
  std::int64_t slots;                        // output rows kept per depth window
  std::int64_t deep;                         // output slabs that cover an input slab
  std::int64_t task_rows, row_tasks;         // input rows per task
};

inline BackPlan plan_backward(const Params& p, std::int64_t lanes) {
  const Window& w = p.window;
  BackPlan b;
  b.planes = p.n * p.c;
  b.phases = imin(w.kernel[2], w.stride[2] / gcd(w.stride[2], w.dil[2]));
  b.shift = (w.kernel[2] - 1) * w.dil[2] / w.stride[2];
  b.segment = p.out[2] + b.shift;
  b.group = imax(1, imin(b.planes, kBackTarget / b.segment));
  b.groups = ceil_div(b.planes, b.group);
  b.row = ceil_div(b.group * b.segment, lanes) * lanes;
  b.slots = imin(p.out[1], ceil_div(reach(w, 1), w.stride[1]));
  b.deep = imin(p.out[0], ceil_div(reach(w, 0), w.stride[0]));
  b.task_rows = imin(p.in[1], imax(16, ceil_div(kTaskTarget, b.group * p.in[2])));
  b.row_tasks = ceil_div(p.in[1], b.task_rows);
  return b;
}

template <class V, int... i>
inline V interleave_low(V a, V b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i / 2 + i % 2 * int(sizeof...(i)))...);
}
template <class V, int... i>
inline V interleave_high(V a, V b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i / 2 + int(sizeof...(i)) / 2 + i % 2 * int(sizeof...(i)))...);
}

// to[2i] = even[i], to[2i+1] = odd[i] for n pairs.
template <class T, class C>
inline void join_rows(const C* even, const C* odd, T* to, std::int64_t n) {
  constexpr int lanes = kLanes<C>;
  constexpr auto lane = std::make_integer_sequence<int, lanes>{};
  std::int64_t i = 0;
  while (n >= lanes && i < n) {
    i = imin(i, n - lanes);
    const auto a = load(even + i), b = load(odd + i);
    store(to + 2 * i, interleave_low(a, b, lane));
    store(to + 2 * i + lanes, interleave_high(a, b, lane));
    i += lanes;
  }
  for (; i < n; ++i) {
    store1(to + 2 * i, even[i]);
    store1(to + 2 * i + 1, odd[i]);
  }
}

// A packed output row that covers the input row, from some slot on, and the code of a tap in it.
template <class C>
struct CoverRow {
  const C* grad;
  const code_t<C>* code;
  std::int64_t row_code;
};

template <class T, class A>
struct RowSpread {
  using C = compute_t<T>;
  using I = code_t<C>;
  static constexpr bool kIndex = std::is_same_v<A, std::int64_t>;

  const Params& p;
  const BackPlan& b;
  const T* grad_output;
  const A* argmax;
  T* grad_input;

  C* ring_grad = nullptr;  // [deep][slots][shift + row]
  I* ring_code = nullptr;
  C* sums = nullptr;             // [phases][row]
  std::int64_t* held = nullptr;  // [deep][slots] the output row that a ring row was made of
  Slots* inside = nullptr;       // [phases] slots whose columns lie in the image
  CoverRow<C>* cover = nullptr;  // [deep * slots]
  PlaneStart* plane = nullptr;   // [group] the planes of a task
  CoverRow<C>* tap = nullptr;    // [deep * slots * k_w]

  void carve(Arena& arena) {
    const std::int64_t ring = b.deep * b.slots;
    ring_grad = arena.take<C>(ring * (b.shift + b.row));
    ring_code = arena.take<I>(ring * (b.shift + b.row));
    sums = arena.take<C>(b.phases * b.row);
    held = arena.take<std::int64_t>(ring);
    inside = arena.take<Slots>(b.phases);
    cover = arena.take<CoverRow<C>>(ring);
    plane = arena.take<PlaneStart>(b.group);
    tap = arena.take<CoverRow<C>>(ring * p.window.kernel[2]);
  }

  std::int64_t phase(std::int64_t f) const { return f * p.window.dil[2] % p.window.stride[2]; }

  // What names tap (td, th, 0) once the window's place is taken off.
  std::int64_t row_code(std::int64_t td, std::int64_t th) const {
    if (kIndex) return (td * p.window.dil[0] * p.in[1] + th * p.window.dil[1]) * p.in[2];
    return (td * p.window.kernel[1] + th) * p.window.kernel[2];
  }

  void prepare() {
    const std::int64_t ring = b.deep * b.slots;
    for (std::int64_t i = 0; i < ring * (b.shift + b.row); ++i) ring_grad[i] = 0, ring_code[i] = 0;
    for (std::int64_t f = 0; f < b.phases; ++f)
      inside[f] = slots_inside(phase(f) - p.window.pad[2], p.window.stride[2], p.in[2], b.segment);
  }

  void pack(std::int64_t planes, std::int64_t od, std::int64_t oh, C* grad, I* code) {
    const std::int64_t n = p.out[2], step = p.output.s[2], code_step = p.argmax.s[2];
    const std::int64_t base = (at(p, 0, od, 0) * p.in[1] + at(p, 1, oh, 0)) * p.in[2] - p.window.pad[2];
    for (std::int64_t g = 0; g < planes; ++g, grad += b.segment, code += b.segment) {
      const T* from = grad_output + plane[g].output + od * p.output.s[0] + oh * p.output.s[1];
      const A* arg = argmax + plane[g].argmax + od * p.argmax.s[0] + oh * p.argmax.s[1];
      if (step == 1) copy_row(from, grad + b.shift, n);
      else for (std::int64_t i = 0; i < n; ++i) grad[b.shift + i] = load1(from + i * step);
      if (kIndex || code_step != 1 || n < kLanes<C>) {
        for (std::int64_t i = 0; i < n; ++i)
          code[b.shift + i] = static_cast<I>(arg[i * code_step] - (kIndex ? base + i * p.window.stride[2] : 0));
        continue;
      }
      for (std::int64_t i = 0; i < n; i += kLanes<C>) {
        const std::int64_t at = imin(i, n - kLanes<C>);
        const auto lanes = load_codes<C>(arg + at);
        __builtin_memcpy(code + b.shift + at, &lanes, sizeof(lanes));
      }
    }
  }

  std::int64_t collect(std::int64_t planes, std::int64_t id, std::int64_t ih) {
    std::int64_t n = 0;
    covering(p, 0, id, [&](std::int64_t od, std::int64_t td) {
      covering(p, 1, ih, [&](std::int64_t oh, std::int64_t th) {
        const std::int64_t slot = od % b.deep * b.slots + oh % b.slots;
        C* grad = ring_grad + slot * (b.shift + b.row);
        I* code = ring_code + slot * (b.shift + b.row);
        if (held[slot] != od * p.out[1] + oh) pack(planes, od, oh, grad, code);
        held[slot] = od * p.out[1] + oh;
        cover[n++] = {grad, code, row_code(td, th)};
      });
    });
    return n;
  }

  // The taps of phase f over all covering rows, in the order of their windows.
  std::int64_t list_taps(std::int64_t f, std::int64_t covers) {
    const std::int64_t dil = p.window.dil[2], stride = p.window.stride[2], code_step = kIndex ? dil : 1;
    const std::int64_t last = f + (p.window.kernel[2] - 1 - f) / b.phases * b.phases;
    std::int64_t n = 0;
    for (std::int64_t k = 0; k < covers; ++k)
      for (std::int64_t t = last; t >= 0; t -= b.phases) {
        const std::int64_t back = b.shift - t * dil / stride;
        tap[n++] = {cover[k].grad + back, cover[k].code + back, cover[k].row_code + t * code_step};
      }
    return n;
  }

  template <int kVectors>
  void sum_slots(std::int64_t taps, std::int64_t j, C* to) const {
    vec<C> sum[kVectors] = {};
    for (std::int64_t k = 0; k < taps; ++k) {
      const auto code = splat_code<C>(tap[k].row_code);
      for (int u = 0; u < kVectors; ++u) {
        const std::int64_t i = j + u * kLanes<C>;
        sum[u] += load_code<C>(tap[k].code + i) == code ? load(tap[k].grad + i) : vec<C>{};
      }
    }
    for (int u = 0; u < kVectors; ++u) store(to + j + u * kLanes<C>, sum[u]);
  }

  void sum_phase(std::int64_t f, std::int64_t covers, C* to) {
    const std::int64_t taps = list_taps(f, covers);
    std::int64_t j = 0;
    for (; j + 4 * kLanes<C> <= b.row; j += 4 * kLanes<C>) sum_slots<4>(taps, j, to);
    for (; j < b.row; j += kLanes<C>) sum_slots<1>(taps, j, to);
  }

  // One plane's part of the row: its only phase, or its two phases interleaved.
  void emit(T* to, const C* from) const {
    const std::int64_t pad = p.window.pad[2];
    if (b.phases == 1) {
      const Slots s = inside[0];
      emit_values(from + s.begin, to + s.begin - pad, 1, s.end - s.begin);
      for (std::int64_t i = s.end - pad; i < p.in[2]; ++i) store1(to + i, C{});
      return;
    }
    const std::int64_t begin = imax(inside[0].begin, inside[1].begin), end = imin(inside[0].end, inside[1].end);
    if (inside[1].begin < begin) store1(to, from[b.row + inside[1].begin]);
    join_rows(from + begin, from + b.row + begin, to + 2 * begin - pad, end - begin);
    if (inside[0].end > end) store1(to + 2 * end - pad, from[end]);
    for (std::int64_t i = imax(2 * inside[0].end - 1, 2 * inside[1].end) - pad; i < p.in[2]; ++i) store1(to + i, C{});
  }

  void run(std::int64_t task) {
    const std::int64_t begin = task % b.row_tasks * b.task_rows, end = imin(p.in[1], begin + b.task_rows);
    const std::int64_t id = task / b.row_tasks % p.in[0];
    const std::int64_t first_plane = task / b.row_tasks / p.in[0] * b.group;
    const std::int64_t planes = imin(b.group, b.planes - first_plane);
    for (std::int64_t g = 0; g < planes; ++g) plane[g] = plane_start(p, first_plane + g);
    for (std::int64_t i = 0; i < b.deep * b.slots; ++i) held[i] = -1;
    for (std::int64_t ih = begin; ih < end; ++ih) {
      const std::int64_t covers = collect(planes, id, ih);
      for (std::int64_t f = 0; f < b.phases; ++f) sum_phase(f, covers, sums + f * b.row);
      for (std::int64_t g = 0; g < planes; ++g)
        emit(grad_input + plane[g].input + id * p.input.s[0] + ih * p.input.s[1], sums + g * b.segment);
    }
  }
};

template <class T, class A>
void backward_rows_of(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  const BackPlan b = plan_backward(p, kLanes<compute_t<T>>);
  parallel_for(b.groups * p.in[0] * b.row_tasks, 1, [&](std::int64_t begin, std::int64_t end) {
    RowSpread<T, A> spread{p, b, static_cast<const T*>(grad_output), static_cast<const A*>(argmax),
                           static_cast<T*>(grad_input)};
    Arena arena;
    spread.carve(arena);
    arena = {static_cast<char*>(scratch_bytes(Slot::local, arena.used)), 0};
    spread.carve(arena);
    spread.prepare();
    for (std::int64_t task = begin; task < end; ++task) spread.run(task);
  });
}

void backward_rows(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto t) {
    with_argmax(p.record, [&](auto* a) {
      using A = std::remove_pointer_t<decltype(a)>;
      if constexpr (!std::is_void_v<A>) backward_rows_of<decltype(t), A>(p, grad_output, argmax, grad_input);
    });
  });
}

}  // namespace
}  // namespace convnorm::max_pool
