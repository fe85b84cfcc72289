// Backward of max pooling with vectors along the row: overlapping windows in NCHW, stride 1 or 2 along the
// row.
//
//   task   = planes, row by row in the order of memory: rows spill into the next (max_pool_spill.h)
//   slots  slot j of a row is its columns [stride*j, stride*(j + 1)), one per phase. Tap t belongs to phase
//          (t*dil - pad) mod stride, and there slot j reads output column j - back(t): every tap is a run of
//          consecutive gradients, added where the recorded code names it. Taps go down, so that windows go
//          up: the order of all kernels
//   runs   at stride 1 and with output rows as long as input rows, all rows of a plane but the first and last
//          few go as one long row
//   edges  columns j - back(t) outside the output row lie in its neighbours. Where windows reach far enough
//          their codes cannot name this row's slots and nothing need be checked; else the codes of the first
//          and last vectors are masked
//
// Each gradient is written once; two phases are interleaved in registers.
#pragma once

namespace convnorm::max_pool {
namespace {

// An output row that covers an input row: where a plane has it, and the code of its first tap there.
struct CoverRow {
  std::int64_t grad, argmax, code;
};

// Input rows that go as one, and the output rows that cover the first of them, in order.
struct RowRun {
  std::int64_t rows, covers;
  const CoverRow* cover;
};

// The runs of a plane. Where input rows are as long as output rows, all rows that are covered alike (and only
// the first and last few are not) make one long row.
struct RowRuns {
  CoverRow* cover = nullptr;
  RowRun* run = nullptr;
  std::int64_t count = 0;

  void carve(const Params& p, bool join, Arena& arena) {
    const std::int64_t rows = p.in[0] * p.in[1], most = most_covers(p, 0) * most_covers(p, 1);
    cover = arena.take<CoverRow>(rows * most);
    run = arena.take<RowRun>(rows);
    if (!arena.base) return;
    CoverRow* next = cover;
    for (std::int64_t i = 0; i < rows; ++i) {
      run[count] = {1, list(p, i / p.in[1], i % p.in[1], next), next};
      next += run[count].covers;
      if (join && count && continues(p, run[count - 1], run[count]))
        ++run[count - 1].rows;
      else
        ++count;
    }
  }

  static std::int64_t list(const Params& p, std::int64_t id, std::int64_t ih, CoverRow* to) {
    std::int64_t n = 0;
    covering(p, 0, id, [&](std::int64_t od, std::int64_t td) {
      covering(p, 1, ih, [&](std::int64_t oh, std::int64_t th) {
        to[n++] = {od * p.output.s[0] + oh * p.output.s[1], od * p.argmax.s[0] + oh * p.argmax.s[1],
                   (td * p.window.kernel[1] + th) * p.window.kernel[2]};
      });
    });
    return n;
  }

  static bool continues(const Params& p, const RowRun& a, const RowRun& b) {
    const std::int64_t step = a.rows * p.out[2];
    bool same = a.covers == b.covers;
    for (std::int64_t k = 0; same && k < a.covers; ++k)
      same = b.cover[k].grad == a.cover[k].grad + step && b.cover[k].argmax == a.cover[k].argmax + step &&
             b.cover[k].code == a.cover[k].code;
    return same;
  }
};

// The geometry along the row. Common windows know theirs at compile time; kTaps 0 is any number. kPad is the
// padding's remainder by the stride; a dilation other than 1 is odd where the stride is 2.
template <int kStride, int kTaps, int kPad>
struct RowTaps {
  std::int64_t taps, dil, pad, outputs;
  explicit RowTaps(const Params& p)
      : taps(kTaps ? kTaps : p.window.kernel[2]),
        dil(kTaps ? 1 : p.window.dil[2]),
        pad(p.window.pad[2]),
        outputs(p.out[2]) {}

  // The last tap of a phase; the others are kStride apart.
  std::int64_t last(int phase) const {
    const std::int64_t t = (kTaps ? kTaps : taps) - 1;
    return kStride == 1 || (t + kPad + phase) % 2 == 0 ? t : t - 1;
  }
  // Slot j reads output column j - back(t).
  std::int64_t back(int phase, std::int64_t t) const {
    return (kTaps ? t - (kStride == 1 ? pad : kPad) - phase : t * dil - pad - phase) / kStride;
  }
};

template <int kStride, class C, class T>
inline void store_slots(const vec<C> (&sum)[kStride], std::int64_t j, T* to) {
  if constexpr (kStride == 1)
    store(to + j, sum[0]);
  else
    store_interleaved<C>(to + 2 * j, sum[0], sum[1]);
}

// Slots j, j + 1, ... from kRows output rows and kTaps taps, whose codes stay in registers. `outside` masks
// codes tap by tap.
template <int kStride, int kTaps, int kRows, bool kMasked, class Taps, class T>
inline __attribute__((always_inline)) void spread_slots(const Taps& w, const T* const (&grad)[kRows],
                                                        const std::uint8_t* const (&argmax)[kRows],
                                                        const ivec<compute_t<T>> (&code)[kRows][kTaps],
                                                        const ivec<compute_t<T>>* outside, std::int64_t j,
                                                        T* to) {
  using C = compute_t<T>;
  vec<C> sum[kStride];
#pragma GCC unroll 2
  for (int f = 0; f < kStride; ++f) {
    sum[f] = vec<C>{};
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 3
      for (std::int64_t t = w.last(f); t >= 0; t -= kStride) {
        auto a = load_codes<C>(argmax[r] + (j - w.back(f, t)));
        if constexpr (kMasked) a |= outside[t];
        const vec<C> g = load(grad[r] + (j - w.back(f, t)));
        sum[f] += a == code[r][t] ? g : vec<C>{};
      }
  }
  store_slots<kStride, C>(sum, j, to);
}

// The same from any number of rows and taps.
template <int kStride, bool kMasked, class Taps, class T>
inline void spread_slots(const Taps& w, const T* grad, const std::uint8_t* argmax, const RowRun& run,
                         const ivec<compute_t<T>>* outside, std::int64_t j, T* to) {
  using C = compute_t<T>;
  vec<C> sum[kStride];
  for (int f = 0; f < kStride; ++f) {
    sum[f] = vec<C>{};
    for (const CoverRow *row = run.cover, *end = row + run.covers; row != end; ++row)
      for (std::int64_t t = w.last(f); t >= 0; t -= kStride) {
        const std::int64_t column = j - w.back(f, t);
        auto a = load_codes<C>(argmax + row->argmax + column);
        if constexpr (kMasked) a |= outside[t];
        const vec<C> g = load(grad + row->grad + column);
        sum[f] += a == splat_code<C>(row->code + t) ? g : vec<C>{};
      }
  }
  store_slots<kStride, C>(sum, j, to);
}

template <class T, int kStride, int kTaps, int kPad>
struct RowSpread {
  using C = compute_t<T>;
  static constexpr int kWidth = kLanes<C>;

  const Params& p;
  const T *grad, *grad_end;
  const std::uint8_t *argmax, *argmax_end;
  const T* grad_input_end;
  RowTaps<kStride, kTaps, kPad> taps{p};
  // A column c of a neighbouring row's window that is read for this row is c +- out*stride in its own row.
  bool unmasked = p.out[2] * kStride >= p.in[2], join = unmasked && kStride == 1 && p.in[2] == p.out[2];
  std::int64_t slots = ceil_div(ceil_div(p.in[2], kStride), kWidth) * kWidth;  // of a row, in whole vectors
  // From the first column of a plane's last row, slots that vectors reach: joined rows end in mid-vector.
  std::int64_t last_slots = slots + (join ? kWidth : 0);
  // Output columns that are read in front of a row's first and from there on.
  std::int64_t before = reach(p.window, 2) / kStride, after = last_slots + p.window.pad[2] + 1;
  std::int64_t begin = unmasked ? 0 : imin(slots, ceil_div(before, kWidth) * kWidth);  // slots without masks
  std::int64_t end = unmasked ? slots : imax(begin, (p.out[2] - p.window.pad[2]) / kWidth * kWidth - kWidth);
  RowRuns runs{};
  CoverRow* staged = nullptr;
  ivec<C>* masks = nullptr;  // [vectors of slots outside [begin, end)][taps]
  T *grad_stage = nullptr, *grad_input_stage = nullptr;
  std::uint8_t* argmax_stage = nullptr;

  void carve(Arena& arena) {
    const std::int64_t most = most_covers(p, 0) * most_covers(p, 1), width = before + after;
    runs.carve(p, join, arena);
    staged = arena.take<CoverRow>(most);
    masks = arena.take<ivec<C>>((slots - (end - begin)) / kWidth * taps.taps);
    grad_stage = arena.take<T>(most * width);
    argmax_stage = arena.take<std::uint8_t>(most * width);
    grad_input_stage = arena.take<T>(slots * kStride);
    if (!arena.base) return;
    std::memset(grad_stage, 0, most * width * sizeof(T));
    std::memset(argmax_stage, 0xff, most * width);  // names no tap
    for (std::int64_t j = 0; j < slots; j += kWidth)
      if (j < begin || j >= end)
        for (int f = 0; f < kStride; ++f)
          for (std::int64_t t = taps.last(f); t >= 0; t -= kStride)
            masks[mask_of(j) * taps.taps + t] = outside<C>(j - taps.back(f, t), p.out[2]);
  }

  std::int64_t mask_of(std::int64_t j) const { return (j < begin ? j : j - (end - begin)) / kWidth; }

  // n slots, from kRows output rows where that is not 0.
  template <int kRows>
  void spread_run(const T* g, const std::uint8_t* a, const RowRun& run, std::int64_t n, T* to) const {
    const auto w = taps;
    const std::int64_t plain = begin, plain_end = unmasked ? n : end;
    const auto each_vector = [&](auto&& spread) __attribute__((always_inline)) {
      for (std::int64_t j = 0; j < n; j += kWidth)
        if (j >= plain && j < plain_end)
          spread(j, std::false_type{}, nullptr);
        else
          spread(j, std::true_type{}, masks + mask_of(j) * w.taps);
    };
    if constexpr (kRows && kTaps) {
      const T* grad_row[kRows];
      const std::uint8_t* argmax_row[kRows];
      ivec<C> code[kRows][kTaps];
      for (int r = 0; r < kRows; ++r) {
        grad_row[r] = g + run.cover[r].grad;
        argmax_row[r] = a + run.cover[r].argmax;
        for (int t = 0; t < kTaps; ++t) code[r][t] = splat_code<C>(run.cover[r].code + t);
      }
      each_vector([&](std::int64_t j, auto masked, const ivec<C>* mask) __attribute__((always_inline)) {
        spread_slots<kStride, kTaps, kRows, masked.value>(w, grad_row, argmax_row, code, mask, j, to);
      });
    } else {
      each_vector([&](std::int64_t j, auto masked, const ivec<C>* mask) __attribute__((always_inline)) {
        spread_slots<kStride, masked.value>(w, g, a, run, mask, j, to);
      });
    }
  }

  void spread_row(const T* g, const std::uint8_t* a, const RowRun& run, std::int64_t n, T* to) const {
    if (kTaps && run.covers == 1) return spread_run<1>(g, a, run, n, to);
    if (kTaps && run.covers == 2) return spread_run<2>(g, a, run, n, to);
    if (kTaps && run.covers == 3 && kStride == 1) return spread_run<3>(g, a, run, n, to);
    spread_run<0>(g, a, run, n, to);
  }

  void spread_staged(const T* g, const std::uint8_t* a, const RowRun& run, T* to) const {
    for (std::int64_t i = 0; i < run.rows; ++i) {
      for (std::int64_t r = 0; r < run.covers; ++r) {
        const std::int64_t at = r * (before + after) + before;
        std::memcpy(grad_stage + at, g + run.cover[r].grad + i * p.out[2], p.out[2] * sizeof(T));
        std::memcpy(argmax_stage + at, a + run.cover[r].argmax + i * p.out[2], p.out[2]);
        staged[r] = {at, at, run.cover[r].code};
      }
      spread_row(grad_stage, argmax_stage, {1, run.covers, staged}, slots, grad_input_stage);
      std::memcpy(to + i * p.in[2], grad_input_stage, p.in[2] * sizeof(T));
    }
  }

  // What a plane's rows read and write beyond themselves belongs to this task.
  bool has_room(const T* g, const std::uint8_t* a, const T* to) const {
    const auto last = [&](const Strides& s) { return (p.out[0] - 1) * s.s[0] + (p.out[1] - 1) * s.s[1]; };
    return g - grad >= before && grad_end - g >= last(p.output) + after && a - argmax >= before &&
           argmax_end - a >= last(p.argmax) + after &&
           grad_input_end - to >= plane(p) - p.in[2] + last_slots * kStride;
  }

  void spread_plane(const T* g, const std::uint8_t* a, T* to) const {
    const bool room = has_room(g, a, to);
    for (std::int64_t k = 0; k < runs.count; ++k) {
      const RowRun& run = runs.run[k];
      const std::int64_t joined = (run.rows - 1) * p.in[2];  // 0 unless a slot is a column
      room ? spread_row(g, a, run, slots + joined, to) : spread_staged(g, a, run, to);
      to += run.rows * p.in[2];
    }
  }
};

template <class T, int kStride, int kTaps, int kPad>
void spread_rows(const Params& p, const T* grad_output, const std::uint8_t* argmax, T* grad_input) {
  parallel_for(p.n * p.c, planes_per_task(plane(p)), [&](std::int64_t begin, std::int64_t end) {
    RowSpread<T, kStride, kTaps, kPad> rows{p,
                                            grad_output,
                                            grad_output + extent(p, p.output, p.out),
                                            argmax,
                                            argmax + extent(p, p.argmax, p.out),
                                            grad_input + end * plane(p)};
    carve_scratch(Slot::local, [&](Arena& arena) { rows.carve(arena); });
    each_plane_start(p, begin, end, [&](std::int64_t q, const PlaneStart& start) {
      rows.spread_plane(grad_output + start.output, argmax + start.argmax, grad_input + q * plane(p));
    });
  });
}

void backward_rows(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  const bool three = p.window.kernel[2] == 3 && p.window.dil[2] == 1, odd = p.window.pad[2] % 2 == 1;
  dispatch(p.dtype, [&](auto t) {
    using T = decltype(t);
    const auto spread = p.window.stride[2] == 1 ? (three ? spread_rows<T, 1, 3, 0> : spread_rows<T, 1, 0, 0>)
                        : three                 ? (odd ? spread_rows<T, 2, 3, 1> : spread_rows<T, 2, 3, 0>)
                                                : (odd ? spread_rows<T, 2, 0, 1> : spread_rows<T, 2, 0, 0>);
    spread(p, static_cast<const T*>(grad_output), static_cast<const std::uint8_t*>(argmax),
           static_cast<T*>(grad_input));
  });
}

}  // namespace
}  // namespace convnorm::max_pool
