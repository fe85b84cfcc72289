// Winograd of strided windows over few channels, such as a ResNet's stem, by folded_problem (conv.h): 7x7 at
// step 2 over 3 channels is 4x4 at step 1 over 12, which is 36 products per term and 9 outputs.
//
//   for images of a chunk (2 MB folded, which L2 holds):
//     forward     fold the images                          Winograd with w'
//     by input    Winograd with w', into folded images     unfold them
//     by weight   fold the images                          Winograd by weight, added to the sums of w'
//
// Folded images and weights are scratch. An image is folded a row at a time, in parallel; the chunks follow
// from the shape alone.
//
// Include after conv_winograd_weight.h.
#pragma once

namespace convnorm::conv {
namespace {

inline constexpr std::int64_t kFoldedBytes = 2 << 20;

struct Folding {
  const Params* p;
  Params q;              // the folded problem, of one chunk
  std::int64_t images;   // of a chunk
  std::int64_t weights;  // elements of w'
};

inline Folding make_folding(const Params& p) {
  Folding f{&p, folded_problem(p), 0, 0};
  f.images = imin(p.input.n, imax(1, kFoldedBytes / std::int64_t(f.q.input.stride_n * sizeof(float))));
  f.weights = p.output.c * f.q.weight.stride_k;
  return f;
}

// The pixels X of a folded row whose phase p_w lies in the image.
inline Span inside(const Folding& f, std::int64_t phase) {
  const std::int64_t step = f.p->window.stride[2], first = phase - f.p->window.pad[2];
  const std::int64_t lo = imin(f.q.input.size[2], imax(0, ceil_div(-first, step)));
  return {lo, imax(lo, imin(f.q.input.size[2], ceil_div(f.p->input.size[2] - first, step)))};
}

// body(pixels inside, lane, where its pixel 0 lies in a row of the image) for the lanes (p_w, c) of a row.
template <class Body>
inline void each_lane(const Folding& f, Body&& body) {
  const View5& in = f.p->input;
  for (std::int64_t phase = 0, lane = 0; phase < f.p->window.stride[2]; ++phase) {
    const Span span = inside(f, phase);
    for (std::int64_t c = 0; c < in.c; ++c, ++lane)
      body(span, lane, c * in.stride_c + (phase - f.p->window.pad[2]) * in.stride[2]);
  }
}

// A row of the image to the lanes of a folded row; null: all padding.
inline void fold_row(const Folding& f, const float* row, float* to) {
  const std::int64_t step = f.p->window.stride[2] * f.p->input.stride[2];
  const std::int64_t pitch = f.q.input.stride[2], width = f.q.input.size[2];
  each_lane(f, [&](Span span, std::int64_t lane, std::int64_t first) {
    if (!row) span = {width, width};
    float* at = to + lane;
    for (std::int64_t x = 0; x < span.begin; ++x) at[x * pitch] = 0;
    for (std::int64_t x = span.begin; x < span.end; ++x) at[x * pitch] = row[first + x * step];
    for (std::int64_t x = span.end; x < width; ++x) at[x * pitch] = 0;
  });
}

inline void unfold_row(const Folding& f, const float* from, float* row) {
  const std::int64_t step = f.p->window.stride[2] * f.p->input.stride[2], pitch = f.q.input.stride[2];
  each_lane(f, [&](Span span, std::int64_t lane, std::int64_t first) {
    for (std::int64_t x = span.begin; x < span.end; ++x) row[first + x * step] = from[x * pitch + lane];
  });
}

inline void fold_images(const Folding& f, std::int64_t n0) {
  const View5 &in = f.p->input, &folded = f.q.input;
  const std::int64_t step = f.p->window.stride[1], rows = folded.size[1], run = f.p->window.stride[2] * in.c;
  parallel_for(folded.n * rows, 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const float* image = static_cast<const float*>(in.data) + (n0 + i / rows) * in.stride_n;
      float* to = static_cast<float*>(folded.data) + i * folded.stride[1];
      for (std::int64_t phase = 0; phase < step; ++phase) {
        const std::int64_t y = i % rows * step + phase - f.p->window.pad[1];
        const bool is_inside = y >= 0 && y < in.size[1];
        fold_row(f, is_inside ? image + y * in.stride[1] : nullptr, to + phase * run);
      }
    }
  });
}

// Pixels that no window reaches are not in the folded image: their gradient is zero.
inline void unfold_images(const Folding& f, std::int64_t n0) {
  const View5 &in = f.p->input, &folded = f.q.input;
  const std::int64_t step = f.p->window.stride[1], rows = in.size[1], run = f.p->window.stride[2] * in.c;
  const std::int64_t reached = imin(in.size[2], folded.size[2] * f.p->window.stride[2] - f.p->window.pad[2]);
  parallel_for(folded.n * rows, 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t y = i % rows + f.p->window.pad[1];
      float* row = static_cast<float*>(in.data) + (n0 + i / rows) * in.stride_n + i % rows * in.stride[1];
      const bool is_reached = y / step < folded.size[1];
      for (std::int64_t x = is_reached ? reached : 0; x < in.size[2]; ++x)
        for (std::int64_t c = 0; c < in.c; ++c) row[x * in.stride[2] + c * in.stride_c] = 0;
      if (!is_reached) continue;
      const float* from = static_cast<const float*>(folded.data) + i / rows * folded.stride_n;
      unfold_row(f, from + y / step * folded.stride[1] + y % step * run, row);
    }
  });
}

// body(a weight of w, the index of its place in w').
template <class Body>
inline void each_weight(const Folding& f, Body&& body) {
  const Params& p = *f.p;
  const Weight &w = p.weight, &folded = f.q.weight;
  const std::int64_t step_h = p.window.stride[1], step_w = p.window.stride[2];
  for (std::int64_t k = 0; k < p.output.c; ++k)
    for (std::int64_t c = 0; c < p.input.c; ++c)
      for (std::int64_t i = 0; i < p.window.kernel[1]; ++i)
        for (std::int64_t j = 0; j < p.window.kernel[2]; ++j) {
          const std::int64_t term = (i % step_h * step_w + j % step_w) * p.input.c + c;
          float* at = static_cast<float*>(w.data) + k * w.stride_k + c * w.stride_c + i * w.stride[1] +
                      j * w.stride[2];
          body(*at,
               k * folded.stride_k + term * folded.stride_c + i / step_h * folded.stride[1] + j / step_w);
        }
}

// The images [n0, n0 + images) of the problem.
inline void take_images(Folding& f, std::int64_t n0) {
  const Params& p = *f.p;
  f.q.input.n = f.q.output.n = imin(f.images, p.input.n - n0);
  const std::int64_t offset = n0 * p.output.stride_n;
  f.q.output.data = static_cast<float*>(p.output.data) + offset;
  if (p.residual) f.q.residual = static_cast<const float*>(p.residual) + offset;
}

inline void folded_by_weight(const Params& p) {
  Folding f = make_folding(p);
  const std::int64_t biases = p.bias ? p.output.c : 0;
  float *bias, *weight;
  double* sums;  // of w', then of the bias
  carve_scratch(Slot::rewritten, [&](Arena& arena) {
    f.q.input.data = arena.take<float>(f.images * f.q.input.stride_n);
    weight = arena.take<float>(f.weights);
    bias = arena.take<float>(biases);
    return sums = arena.take<double>(f.weights + biases);
  });
  f.q.weight.data = weight;
  f.q.bias = p.bias ? bias : nullptr;
  for (std::int64_t i = 0; i < f.weights + biases; ++i) sums[i] = 0;
  for (std::int64_t n0 = 0; n0 < p.input.n; n0 += f.images) {
    take_images(f, n0);
    fold_images(f, n0);
    winograd_by_weight(forward_problem(f.q));
    for (std::int64_t i = 0; i < f.weights; ++i) sums[i] += weight[i];
    for (std::int64_t k = 0; k < biases; ++k) sums[f.weights + k] += bias[k];
  }
  each_weight(f, [&](float& w, std::int64_t at) { w = static_cast<float>(sums[at]); });
  for (std::int64_t k = 0; k < biases; ++k)
    static_cast<float*>(p.bias)[k] = static_cast<float>(sums[f.weights + k]);
}

inline void run_folded(const Params& p) {
  if (p.pass == Pass::by_weight) return folded_by_weight(p);
  Folding f = make_folding(p);
  float* weight;
  carve_scratch(Slot::rewritten, [&](Arena& arena) {
    f.q.input.data = arena.take<float>(f.images * f.q.input.stride_n);
    return weight = arena.take<float>(f.weights);
  });
  f.q.weight.data = weight;
  zero(weight, f.weights);
  each_weight(f, [&](float w, std::int64_t at) { weight[at] = w; });
  for (std::int64_t n0 = 0; n0 < p.input.n; n0 += f.images) {
    take_images(f, n0);
    if (p.pass == Pass::forward) {
      fold_images(f, n0);
      const Dense d = forward_problem(f.q);
      run_winograd(&d, 1, 1);
    } else {
      run_winograd(by_input_problems(f.q).data(), 1, 1);
      unfold_images(f, n0);
    }
  }
}

}  // namespace
}  // namespace convnorm::conv
