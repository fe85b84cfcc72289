// Backward of max pooling with vectors over channels: channels_last.
//
//   task = one input row; each pixel looks at the windows that cover it and adds the gradients of those that
//   recorded it, in row-major order of the windows; each gradient is written once. Which columns cover a
//   pixel is found once per chunk of tasks, which rows once per task.
#pragma once

namespace convnorm::max_pool {
namespace {

// A window that covers an input position: where its gradient and record are, and the code that would name the
// position.
struct Cover {
  std::int64_t grad, argmax, code;
};

// Windows that cover one input position along d, at most.
inline std::int64_t most_covers(const Params& p, int d) {
  return imin(p.out[d], imin(p.window.kernel[d], ceil_div(reach(p.window, d), p.window.stride[d])));
}

// The windows of one dimension that cover coordinate i, in order: f(o, tap).
template <class F>
inline void covering(const Params& p, int d, std::int64_t i, F&& f) {
  const Window& w = p.window;
  const std::int64_t low = i + w.pad[d] - (reach(w, d) - 1);
  const std::int64_t end = imin(p.out[d], (i + w.pad[d]) / w.stride[d] + 1);
  for (std::int64_t o = low > 0 ? ceil_div(low, w.stride[d]) : 0; o < end; ++o) {
    const std::int64_t distance = i + w.pad[d] - o * w.stride[d];
    if (distance % w.dil[d] == 0) f(o, distance / w.dil[d]);
  }
}

template <int kVectors, class T, class A>
inline __attribute__((always_inline)) void sum_channels(const Cover* cover, std::int64_t covers,
                                                        const T* grad_output, const A* argmax,
                                                        T* grad_input) {
  using C = compute_t<T>;
  vec<C> sum[kVectors] = {};
  for (std::int64_t k = 0; k < covers; ++k) {
    const auto code = splat_code<C>(cover[k].code);
    for (int u = 0; u < kVectors; ++u) {
      const vec<C> g = load(grad_output + cover[k].grad + u * kLanes<C>);
      const ivec<C> a = load_codes<C>(argmax + cover[k].argmax + u * kLanes<C>);
      sum[u] += a == code ? g : vec<C>{};
    }
  }
  for (int u = 0; u < kVectors; ++u) store(grad_input + u * kLanes<C>, sum[u]);
}

// What the windows over one row or one column add to a Cover; the covers of column iw are [first[iw],
// first[iw + 1]).
struct CoverLists {
  Cover* column;
  std::int64_t* first;
  Cover* row;
  Cover* pixel;
};

template <bool kIndex>
inline void list_columns(const Params& p, CoverLists lists) {
  std::int64_t n = 0;
  for (std::int64_t iw = 0; iw < p.in[2]; ++iw) {
    lists.first[iw] = n;
    covering(p, 2, iw, [&](std::int64_t ow, std::int64_t tw) {
      lists.column[n++] = {ow * p.output.s[2], ow * p.argmax.s[2], kIndex ? iw : tw};
    });
  }
  lists.first[p.in[2]] = n;
}

template <bool kIndex>
inline std::int64_t list_rows(const Params& p, std::int64_t id, std::int64_t ih, Cover* row) {
  const Strides &sg = p.output, &sa = p.argmax;
  std::int64_t n = 0;
  covering(p, 0, id, [&](std::int64_t od, std::int64_t td) {
    covering(p, 1, ih, [&](std::int64_t oh, std::int64_t th) {
      row[n++] = {od * sg.s[0] + oh * sg.s[1], od * sa.s[0] + oh * sa.s[1],
                  (kIndex ? id * p.in[1] + ih : td * p.window.kernel[1] + th) *
                      (kIndex ? p.in[2] : p.window.kernel[2])};
    });
  });
  return n;
}

template <class T, class A>
inline void sum_row(const Params& p, CoverLists lists, std::int64_t rows, const T* grad_output,
                    const A* argmax, T* grad_input) {
  constexpr int lanes = kLanes<compute_t<T>>;
  for (std::int64_t iw = 0; iw < p.in[2]; ++iw) {
    std::int64_t n = 0;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t k = lists.first[iw]; k < lists.first[iw + 1]; ++k)
        lists.pixel[n++] = {lists.row[r].grad + lists.column[k].grad,
                            lists.row[r].argmax + lists.column[k].argmax,
                            lists.row[r].code + lists.column[k].code};
    T* to = grad_input + iw * p.input.s[2];
    std::int64_t c = 0;
    for (; c + kUnroll * lanes <= p.c; c += kUnroll * lanes)
      sum_channels<kUnroll>(lists.pixel, n, grad_output + c, argmax + c, to + c);
    for (; c < p.c; c += lanes) {
      const std::int64_t at = imin(c, p.c - lanes);
      sum_channels<1>(lists.pixel, n, grad_output + at, argmax + at, to + at);
    }
  }
}

inline CoverLists carve_covers(const Params& p, Arena& arena) {
  const std::int64_t rows = most_covers(p, 0) * most_covers(p, 1), columns = most_covers(p, 2);
  CoverLists lists;
  lists.column = arena.take<Cover>(p.in[2] * columns);
  lists.first = arena.take<std::int64_t>(p.in[2] + 1);
  lists.row = arena.take<Cover>(rows);
  lists.pixel = arena.take<Cover>(rows * columns);
  return lists;
}

template <class T, class A>
void backward_channels_of(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  constexpr bool kIndex = std::is_same_v<A, std::int64_t>;
  const std::int64_t row_cost = p.in[2] * p.c;
  parallel_for(p.n * p.in[0] * p.in[1], ceil_div(65536, row_cost), [&](std::int64_t begin, std::int64_t end) {
    const CoverLists lists = carve_scratch(Slot::local, [&](Arena& arena) { return carve_covers(p, arena); });
    list_columns<kIndex>(p, lists);
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t n = task / p.in[1] / p.in[0], id = task / p.in[1] % p.in[0], ih = task % p.in[1];
      const std::int64_t rows = list_rows<kIndex>(p, id, ih, lists.row);
      sum_row(p, lists, rows, static_cast<const T*>(grad_output) + n * p.output.n,
              static_cast<const A*>(argmax) + n * p.argmax.n,
              static_cast<T*>(grad_input) + n * p.input.n + id * p.input.s[0] + ih * p.input.s[1]);
    }
  });
}

void backward_channels(const Params& p, const void* grad_output, const void* argmax, void* grad_input) {
  dispatch(p.dtype, [&](auto t) {
    with_argmax(p.record, [&](auto* a) {
      using A = std::remove_pointer_t<decltype(a)>;
      if constexpr (!std::is_void_v<A>)
        backward_channels_of<decltype(t), A>(p, grad_output, argmax, grad_input);
    });
  });
}

}  // namespace
}  // namespace convnorm::max_pool
