// The reference algorithm, written to be read: every patch becomes a row of a matrix, the filters become
// columns, and convolution is one matrix product. Its gradients are matrix products too; by input ends in
// col2im, which adds each row back to the place its patch came from.
//
//   cols[o][r] = in[c, o*stride + tap*dil - pad]        r = (c, tap), zero outside the image
//   forward     out[k][o]  = act(sum over r of w[k][r] * cols[o][r] + bias[k] + residual[k][o])
//   by input    cols[o][r] = sum over k of w[k][r] * gout[k][o];  gin = col2im(cols)
//   by weight   gw[k][r]   = sum over o of gout[k][o] * cols[o][r]
//
// One image and group at a time, sums in double, one thread: slow, and right.
#include <vector>

#include "cpu/target_generic.h"
#include "cpu/vec.h"
#include "ops/conv/conv.h"

namespace convnorm::conv {
namespace {

std::int64_t volume(const Dims& d) { return d[0] * d[1] * d[2]; }

Dims unravel(std::int64_t i, const Dims& size) {
  return {i / (size[1] * size[2]), i / size[2] % size[1], i % size[2]};
}

std::int64_t at(const Dims& position, const Dims& stride) {
  return position[0] * stride[0] + position[1] * stride[1] + position[2] * stride[2];
}

// Input position of output o under a tap; false when it lies in the padding.
bool source(const Params& p, const Dims& o, const Dims& tap, Dims& in) {
  for (int s = 0; s < kSpatial; ++s) {
    in[s] = o[s] * p.window.stride[s] + tap[s] * p.window.dil[s] - p.window.pad[s];
    if (in[s] < 0 || in[s] >= p.input.size[s]) return false;
  }
  return true;
}

// One image and one group, with element access that hides layout and dtype.
template <class T>
struct Slice {
  const Params& p;
  std::int64_t n, g;
  std::int64_t channels, filters, pixels, taps;

  Slice(const Params& params, std::int64_t image, std::int64_t group)
      : p(params),
        n(image),
        g(group),
        channels(params.input.c / params.groups),
        filters(params.output.c / params.groups),
        pixels(volume(params.output.size)),
        taps(volume(params.window.kernel)) {}
  std::int64_t rows() const { return channels * taps; }
  T* input(std::int64_t c, const Dims& i) const {
    return static_cast<T*>(p.input.data) + n * p.input.stride_n + (g * channels + c) * p.input.stride_c +
           at(i, p.input.stride);
  }
  T* output(std::int64_t k, std::int64_t o) const {
    return static_cast<T*>(p.output.data) + n * p.output.stride_n + (g * filters + k) * p.output.stride_c +
           at(unravel(o, p.output.size), p.output.stride);
  }
  T* weight(std::int64_t k, std::int64_t r) const {
    return static_cast<T*>(p.weight.data) + (g * filters + k) * p.weight.stride_k +
           r / taps * p.weight.stride_c + at(unravel(r % taps, p.window.kernel), p.weight.stride);
  }
  // f(column element, input element) for every patch position inside the image.
  template <class F>
  void each_patch_element(std::vector<double>& cols, F f) const {
    Dims in{};
    for (std::int64_t o = 0; o < pixels; ++o)
      for (std::int64_t r = 0; r < rows(); ++r)
        if (source(p, unravel(o, p.output.size), unravel(r % taps, p.window.kernel), in))
          f(cols[o * rows() + r], input(r / taps, in));
  }
  std::vector<double> im2col() const {
    std::vector<double> cols(pixels * rows(), 0.0);
    each_patch_element(cols, [](double& col, const T* in) { col = load1(in); });
    return cols;
  }
};

template <class T>
void put(T* to, double x) {
  store1(to, static_cast<compute_t<T>>(x));
}

template <class T>
void forward(const Slice<T>& s) {
  const std::vector<double> cols = s.im2col();
  for (std::int64_t k = 0; k < s.filters; ++k)
    for (std::int64_t o = 0; o < s.pixels; ++o) {
      double sum = s.p.bias ? load1(static_cast<const T*>(s.p.bias) + s.g * s.filters + k) : 0.0;
      for (std::int64_t r = 0; r < s.rows(); ++r) sum += load1(s.weight(k, r)) * cols[o * s.rows() + r];
      T* to = s.output(k, o);
      if (s.p.residual)
        sum += load1(static_cast<const T*>(s.p.residual) + (to - static_cast<const T*>(s.p.output.data)));
      put(to, s.p.relu && sum < 0 ? 0.0 : sum);
    }
}

template <class T>
void by_input(const Slice<T>& s) {
  std::vector<double> cols(s.pixels * s.rows(), 0.0);
  for (std::int64_t o = 0; o < s.pixels; ++o)
    for (std::int64_t r = 0; r < s.rows(); ++r)
      for (std::int64_t k = 0; k < s.filters; ++k)
        cols[o * s.rows() + r] += double(load1(s.weight(k, r))) * load1(s.output(k, o));
  // col2im in double, so that 16-bit gradients are rounded once
  const std::int64_t size = volume(s.p.input.size);
  std::vector<double> image(s.channels * size, 0.0);
  Dims in{};
  for (std::int64_t o = 0; o < s.pixels; ++o)
    for (std::int64_t r = 0; r < s.rows(); ++r)
      if (source(s.p, unravel(o, s.p.output.size), unravel(r % s.taps, s.p.window.kernel), in))
        image[r / s.taps * size + (in[0] * s.p.input.size[1] + in[1]) * s.p.input.size[2] + in[2]] +=
            cols[o * s.rows() + r];
  for (std::int64_t i = 0; i < s.channels * size; ++i)
    put(s.input(i / size, unravel(i % size, s.p.input.size)), image[i]);
}

template <class T>
void add_by_weight(const Slice<T>& s, std::vector<double>& sums, std::vector<double>& bias) {
  const std::vector<double> cols = s.im2col();
  for (std::int64_t k = 0; k < s.filters; ++k)
    for (std::int64_t o = 0; o < s.pixels; ++o) {
      const double g = load1(s.output(k, o));
      bias[k] += g;
      for (std::int64_t r = 0; r < s.rows(); ++r) sums[k * s.rows() + r] += g * cols[o * s.rows() + r];
    }
}

}  // namespace

void im2col_forward(const Params& p) {
  dispatch(p.dtype, [&](auto tag) {
    for (std::int64_t n = 0; n < p.input.n; ++n)
      for (std::int64_t g = 0; g < p.groups; ++g) forward(Slice<decltype(tag)>(p, n, g));
  });
}

void im2col_by_input(const Params& p) {
  dispatch(p.dtype, [&](auto tag) {
    for (std::int64_t n = 0; n < p.input.n; ++n)
      for (std::int64_t g = 0; g < p.groups; ++g) by_input(Slice<decltype(tag)>(p, n, g));
  });
}

void im2col_by_weight(const Params& p) {
  dispatch(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (std::int64_t g = 0; g < p.groups; ++g) {
      const Slice<T> first(p, 0, g);
      std::vector<double> sums(first.filters * first.rows(), 0.0), bias(first.filters, 0.0);
      for (std::int64_t n = 0; n < p.input.n; ++n) add_by_weight(Slice<T>(p, n, g), sums, bias);
      for (std::int64_t k = 0; k < first.filters; ++k) {
        for (std::int64_t r = 0; r < first.rows(); ++r) put(first.weight(k, r), sums[k * first.rows() + r]);
        if (p.bias) put(static_cast<T*>(p.bias) + g * first.filters + k, bias[k]);
      }
    }
  });
}

}  // namespace convnorm::conv
