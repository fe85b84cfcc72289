// Max pooling with vectors along the output row: NCHW, and any other strides.
//
// The window is separable in row-major order: the best of each window row is found first (columns), then the
// best of these (rows), so k_h + k_w steps replace k_h * k_w, and window rows are shared by overlapping
// windows.
//
//   task     = (group of planes, out_d, block of output rows); planes of a group lie side by side in one long
//   row,
//              so that narrow images fill vectors as well as wide ones
//   packing  splits an input row by stride into phases with -inf where padding is: every tap becomes a run of
//            consecutive elements, at phase[t % phases] + t*dil / stride. It also widens 16-bit values and
//            takes up strides
//   columns  one packed row -> best value and code of each window row, kept in a ring of `slots` rows
//   rows     the ring rows of a window -> its best value and code, then stored
//
// Neither inner loop has a border or a remainder: rows are padded to whole vectors in scratch.
#pragma once

namespace convnorm::max_pool {
namespace {

struct RowPlan {
  std::int64_t planes, group, groups;   // planes of a call, side by side in a row, groups of them
  std::int64_t block, blocks;           // output columns per pass
  std::int64_t phases, shift, segment;  // packed rows, reach of a tap in a phase, slots per plane
  std::int64_t row, packed_row;         // elements of a ring row and of a phase
  std::int64_t slots;                   // ring rows per depth tap
  bool shared;                          // consecutive windows share rows
  std::int64_t task_rows, row_tasks;    // output rows per task

  std::int64_t ring_slot(std::int64_t td, std::int64_t th, std::int64_t ih) const {
    return td * slots + (shared ? ih % slots : th);
  }
};

constexpr std::int64_t kRowTarget =
    256;  // slots side by side: many vectors, so that what is done once per row vanishes
constexpr std::int64_t kBlockTarget =
    256;  // output columns per pass: the ring of a 3x3 window stays below 8 KB
constexpr std::int64_t kTaskTarget = 65536;  // input elements per task: 15 us of work

inline std::int64_t gcd(std::int64_t a, std::int64_t b) { return b ? gcd(b, a % b) : a; }

inline RowPlan plan_rows(const Params& p, std::int64_t lanes) {
  const Window& w = p.window;
  RowPlan r;
  r.planes = p.n * p.c;
  r.blocks = ceil_div(p.out[2], kBlockTarget);
  r.block = ceil_div(p.out[2], r.blocks);
  r.phases = imin(w.kernel[2], w.stride[2] / gcd(w.stride[2], w.dil[2]));
  r.shift = (w.kernel[2] - 1) * w.dil[2] / w.stride[2];
  r.segment = r.block + r.shift;
  r.group = imax(1, imin(r.planes, kRowTarget / r.segment));
  r.groups = ceil_div(r.planes, r.group);
  r.row = ceil_div(r.group * r.segment, lanes) * lanes;
  r.packed_row = r.row + ceil_div(r.shift, lanes) * lanes;
  r.shared = w.stride[1] < reach(w, 1) && p.out[1] > 1;
  r.slots = r.shared ? imin(reach(w, 1), p.in[1]) : w.kernel[1];
  const std::int64_t row_cost = r.group * p.in[2] * imin(w.stride[1], w.kernel[1]) * w.kernel[0];
  r.task_rows = imin(p.out[1], imax(8, ceil_div(kTaskTarget, row_cost)));
  r.row_tasks = ceil_div(p.out[1], r.task_rows);
  return r;
}

// --- packing -------------------------------------------------------------------------------------

// The slots [begin, end) of n whose source element first + stride*slot lies in [0, width).
struct Slots {
  std::int64_t begin, end;
};
inline Slots slots_inside(std::int64_t first, std::int64_t stride, std::int64_t width, std::int64_t n) {
  const std::int64_t begin = first < 0 ? imin(n, ceil_div(-first, stride)) : 0;
  const std::int64_t end = first < width ? imin(n, ceil_div(width - first, stride)) : 0;
  return {begin, imax(begin, end)};
}

// to[i] = from[i] for n elements; the last vector overlaps the one before it.
template <class T, class C>
inline void copy_row(const T* from, C* to, std::int64_t n) {
  constexpr int lanes = kLanes<C>;
  if (n < lanes) {
    for (std::int64_t i = 0; i < n; ++i) to[i] = load1(from + i);
    return;
  }
  for (std::int64_t i = 0; i < n - lanes; i += lanes) store(to + i, load(from + i));
  store(to + n - lanes, load(from + n - lanes));
}

// even[i] = from[2i], odd[i] = from[2i+1] for n elements.
template <class T, class C>
inline void split_row(const T* from, C* even, C* odd, std::int64_t n) {
  constexpr int lanes = kLanes<C>;
  std::int64_t i = 0;
  while (n >= lanes && i < n) {
    i = imin(i, n - lanes);
    const auto a = load(from + 2 * i), b = load(from + 2 * i + lanes);
    store(even + i, even_lanes(a, b, kEachLane<C>));
    store(odd + i, odd_lanes(a, b, kEachLane<C>));
    i += lanes;
  }
  for (; i < n; ++i) {
    even[i] = load1(from + 2 * i);
    odd[i] = load1(from + 2 * i + 1);
  }
}

// One plane's part of an input row, into the slots of each phase that lie inside the image; the others keep
// their -inf. `from` is slot 0 of phase 0, phase[f] the distance of phase f from there.
template <class T, class C>
inline void pack_segment(const RowPlan& r, const T* from, std::int64_t stride, std::int64_t step,
                         const std::int64_t* phase, const Slots* inside, Slots common, C* to) {
  if (stride == 1 && step == 1)
    return copy_row(from + common.begin, to + common.begin, common.end - common.begin);
  const auto pick = [&](std::int64_t f, std::int64_t i) {
    to[f * r.packed_row + i] = load1(from + (phase[f] + stride * i) * step);
  };
  for (std::int64_t f = 0; f < r.phases; ++f) {
    for (std::int64_t i = inside[f].begin; i < imin(common.begin, inside[f].end); ++i) pick(f, i);
    for (std::int64_t i = imax(common.end, inside[f].begin); i < inside[f].end; ++i) pick(f, i);
  }
  if (stride == 2 && r.phases == 2 && phase[1] == 1 && step == 1) {
    const std::int64_t begin = common.begin;
    return split_row(from + 2 * begin, to + begin, to + r.packed_row + begin, common.end - begin);
  }
  for (std::int64_t i = common.begin; i < common.end; ++i)
    for (std::int64_t f = 0; f < r.phases; ++f) pick(f, i);
}

// --- the two folds -------------------------------------------------------------------------------

// Best of the taps of one window row; kTaps = 0 takes any number. tap[t] is where tap t starts in the packed
// rows.
template <bool kRecord, int kTaps, class C>
inline void fold_columns(const C* packed, const std::int64_t* tap, std::int64_t taps,
                         const code_t<C>* first_code, std::int64_t code_step, std::int64_t n, C* value,
                         code_t<C>* code) {
  if (kTaps) taps = kTaps;
  const auto step = splat_code<C>(code_step);
  for (std::int64_t i = 0; i < n; i += kLanes<C>) {
    Best<C> best{load(packed + tap[0] + i), {}};
    if constexpr (kRecord) best.code = load_code<C>(first_code + i);
    auto t_code = step;
    for (std::int64_t t = 1; t < taps; ++t, t_code += step)
      take<kRecord>(best, load(packed + tap[t] + i), t_code);
    store(value + i, best.value);
    if constexpr (kRecord) __builtin_memcpy(code + i, &best.code, sizeof(best.code));
  }
}

template <class C>
struct RingRow {
  const C* value;
  const code_t<C>* code;
  std::int64_t row_code;
};

template <bool kRecord, int kRows, class C>
inline void fold_rows(const RingRow<C>* row, std::int64_t rows, std::int64_t n, C* value, code_t<C>* code) {
  if (kRows) rows = kRows;
  for (std::int64_t i = 0; i < n; i += kLanes<C>) {
    Best<C> best{load(row[0].value + i), {}};
    if constexpr (kRecord) best.code = load_code<C>(row[0].code + i) + splat_code<C>(row[0].row_code);
    for (std::int64_t k = 1; k < rows; ++k) {
      ivec<C> k_code{};
      if constexpr (kRecord) k_code = load_code<C>(row[k].code + i) + splat_code<C>(row[k].row_code);
      take<kRecord>(best, load(row[k].value + i), k_code);
    }
    store(value + i, best.value);
    if constexpr (kRecord) __builtin_memcpy(code + i, &best.code, sizeof(best.code));
  }
}

// --- storing -------------------------------------------------------------------------------------

template <class T, class C>
inline void emit_values(const C* value, T* to, std::int64_t step, std::int64_t n) {
  constexpr int lanes = kLanes<C>;
  if (step != 1 || n < lanes) {
    for (std::int64_t i = 0; i < n; ++i) store1(to + i * step, value[i]);
    return;
  }
  for (std::int64_t i = 0; i < n - lanes; i += lanes) store(to + i, load(value + i));
  store(to + n - lanes, load(value + n - lanes));
}

// `first` is the column of slot 0 and `stride` the distance of columns; only indices need them.
template <class C, class A>
inline void emit_codes(const code_t<C>* code, A* to, std::int64_t step, std::int64_t n, std::int64_t first,
                       std::int64_t stride) {
  constexpr int lanes = kLanes<C>;
  if constexpr (sizeof(A) == 8) {
    for (std::int64_t i = 0; i < n; ++i) to[i * step] = code[i] + first + i * stride;
  } else if (step != 1 || n < lanes) {
    for (std::int64_t i = 0; i < n; ++i) to[i * step] = static_cast<A>(code[i]);
  } else {
    for (std::int64_t i = 0; i < n - lanes; i += lanes) store_codes<C>(to + i, load_code<C>(code + i));
    store_codes<C>(to + n - lanes, load_code<C>(code + n - lanes));
  }
}

// --- one task ------------------------------------------------------------------------------------

template <class T, class A>
struct RowPool {
  using C = compute_t<T>;
  using I = code_t<C>;
  static constexpr bool kRecord = !std::is_void_v<A>;
  static constexpr bool kIndex = std::is_same_v<A, std::int64_t>;

  const Params& p;
  const RowPlan& r;
  const T* input;
  T* output;
  A* argmax;

  C* packed = nullptr;      // [phases][packed_row]
  C* ring_value = nullptr;  // [k_d][slots][row]
  I* ring_code = nullptr;
  C* value = nullptr;  // [row]
  I* code = nullptr;
  I* first_code = nullptr;        // [row] code of the first tap inside the image
  std::int64_t* tap = nullptr;    // [k_w] where a tap starts in packed
  std::int64_t* phase = nullptr;  // [phases] its first column
  Slots* inside = nullptr;        // [phases] its slots inside the image
  Slots common{0, 0};             // slots inside in every phase
  PlaneStart* plane = nullptr;    // [group] the planes of a task
  std::int64_t* held = nullptr;   // [k_d][slots] the input row that a ring row was made of
  RingRow<C>* window = nullptr;   // [k_d * k_h]

  void carve(Arena& arena) {
    const std::int64_t ring = p.window.kernel[0] * r.slots;
    packed = arena.take<C>(r.phases * r.packed_row);
    ring_value = arena.take<C>(ring * r.row);
    ring_code = arena.take<I>(kRecord ? ring * r.row : 0);
    value = arena.take<C>(r.row);
    code = arena.take<I>(kRecord ? r.row : 0);
    first_code = arena.take<I>(kRecord ? r.row : 0);
    tap = arena.take<std::int64_t>(p.window.kernel[2]);
    phase = arena.take<std::int64_t>(r.phases);
    inside = arena.take<Slots>(r.phases);
    plane = arena.take<PlaneStart>(r.group);
    held = arena.take<std::int64_t>(ring);
    window = arena.take<RingRow<C>>(p.window.kernel[0] * p.window.kernel[1]);
  }

  std::int64_t code_step() const { return kIndex ? p.window.dil[2] : 1; }

  // What a window row adds to the codes of its columns.
  std::int64_t row_code(std::int64_t od, std::int64_t td, std::int64_t oh, std::int64_t th) const {
    if (kIndex) return (at(p, 0, od, td) * p.in[1] + at(p, 1, oh, th)) * p.in[2];
    return (td * p.window.kernel[1] + th) * p.window.kernel[2];
  }

  void prepare() {
    const Window& w = p.window;
    for (std::int64_t t = 0; t < w.kernel[2]; ++t)
      tap[t] = t % r.phases * r.packed_row + t * w.dil[2] / w.stride[2];
    for (std::int64_t f = 0; f < r.phases; ++f) phase[f] = f * w.dil[2] % w.stride[2];
  }

  void prepare_block(std::int64_t ow) {
    for (std::int64_t i = 0; i < p.window.kernel[0] * r.slots; ++i) held[i] = -1;
    for (std::int64_t i = 0; i < r.phases * r.packed_row; ++i) packed[i] = kLowest<C>;
    common = {0, r.segment};
    for (std::int64_t f = 0; f < r.phases; ++f) {
      inside[f] = slots_inside(at(p, 2, ow, 0) + phase[f], p.window.stride[2], p.in[2], r.segment);
      common = {imax(common.begin, inside[f].begin), imin(common.end, inside[f].end)};
    }
    common.end = imax(common.begin, common.end);
    if (!kRecord) return;
    for (std::int64_t i = 0; i < r.row; ++i) first_code[i] = 0;
    for (std::int64_t i = 0; i < r.block && at(p, 2, ow + i, 0) < 0; ++i)
      for (std::int64_t g = 0; g < r.group; ++g)
        first_code[g * r.segment + i] = static_cast<I>(taps_inside(p, 2, ow + i).begin * code_step());
  }

  void columns(std::int64_t planes, std::int64_t id, std::int64_t ih, std::int64_t ow, C* to_value,
               I* to_code) {
    const std::int64_t first = id * p.input.s[0] + ih * p.input.s[1] + at(p, 2, ow, 0) * p.input.s[2];
    for (std::int64_t g = 0; g < planes; ++g)
      pack_segment(r, input + plane[g].input + first, p.window.stride[2], p.input.s[2], phase, inside, common,
                   packed + g * r.segment);
    const auto fold = p.window.kernel[2] == 2   ? fold_columns<kRecord, 2, C>
                      : p.window.kernel[2] == 3 ? fold_columns<kRecord, 3, C>
                                                : fold_columns<kRecord, 0, C>;
    fold(packed, tap, p.window.kernel[2], first_code, code_step(), r.row, to_value, to_code);
  }

  // The ring rows of output row (od, oh), made where they are not there yet.
  std::int64_t collect(std::int64_t planes, std::int64_t od, std::int64_t oh, std::int64_t ow) {
    const Taps d = taps_inside(p, 0, od), h = taps_inside(p, 1, oh);
    std::int64_t rows = 0;
    for (std::int64_t td = d.begin; td < d.end; ++td) {
      for (std::int64_t th = h.begin; th < h.end; ++th) {
        const std::int64_t id = at(p, 0, od, td), ih = at(p, 1, oh, th);
        const std::int64_t slot = r.ring_slot(td, th, ih);
        C* v = ring_value + slot * r.row;
        I* c = ring_code + slot * r.row;
        if (held[slot] != id * p.in[1] + ih) columns(planes, id, ih, ow, v, c);
        held[slot] = id * p.in[1] + ih;
        window[rows++] = {v, c, row_code(od, td, oh, th)};
      }
    }
    return rows;
  }

  void emit(std::int64_t g, std::int64_t od, std::int64_t oh, std::int64_t ow) {
    const std::int64_t n = imin(r.block, p.out[2] - ow);
    const auto place = [&](const Strides& s) { return od * s.s[0] + oh * s.s[1] + ow * s.s[2]; };
    emit_values(value + g * r.segment, output + plane[g].output + place(p.output), p.output.s[2], n);
    if constexpr (kRecord)
      emit_codes<C>(code + g * r.segment, argmax + plane[g].argmax + place(p.argmax), p.argmax.s[2], n,
                    at(p, 2, ow, 0), p.window.stride[2]);
  }

  void run(std::int64_t task) {
    const std::int64_t oh_begin = task % r.row_tasks * r.task_rows,
                       oh_end = imin(p.out[1], oh_begin + r.task_rows);
    const std::int64_t od = task / r.row_tasks % p.out[0];
    const std::int64_t first_plane = task / r.row_tasks / p.out[0] * r.group;
    const std::int64_t planes = imin(r.group, r.planes - first_plane);
    for (std::int64_t g = 0; g < planes; ++g) plane[g] = plane_start(p, first_plane + g);
    for (std::int64_t ow = 0; ow < p.out[2]; ow += r.block) {
      prepare_block(ow);
      for (std::int64_t oh = oh_begin; oh < oh_end; ++oh) {
        const std::int64_t rows = collect(planes, od, oh, ow);
        const auto fold = rows == 2   ? fold_rows<kRecord, 2, C>
                          : rows == 3 ? fold_rows<kRecord, 3, C>
                                      : fold_rows<kRecord, 0, C>;
        fold(window, rows, r.row, value, code);
        for (std::int64_t g = 0; g < planes; ++g) emit(g, od, oh, ow);
      }
    }
  }
};

template <class T, class A>
void forward_rows_of(const Params& p, const void* input, void* output, void* argmax) {
  const RowPlan r = plan_rows(p, kLanes<compute_t<T>>);
  parallel_for(r.groups * p.out[0] * r.row_tasks, 1, [&](std::int64_t begin, std::int64_t end) {
    RowPool<T, A> pool{p, r, static_cast<const T*>(input), static_cast<T*>(output), static_cast<A*>(argmax)};
    carve_scratch(Slot::local, [&](Arena& arena) { pool.carve(arena); });
    pool.prepare();
    for (std::int64_t task = begin; task < end; ++task) pool.run(task);
  });
}

void forward_rows(const Params& p, const void* input, void* output, void* argmax) {
  dispatch(p.dtype, [&](auto t) {
    with_argmax(p.record, [&](auto* a) {
      forward_rows_of<decltype(t), std::remove_pointer_t<decltype(a)>>(p, input, output, argmax);
    });
  });
}

}  // namespace
}  // namespace convnorm::max_pool
