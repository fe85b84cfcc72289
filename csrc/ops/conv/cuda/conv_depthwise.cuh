// What the kernels of depthwise convolution share: a thread's channels and strips, and the pixels under a
// strip's windows.
#pragma once

#include "cuda/vec.cuh"
#include "ops/conv/cuda/conv_depthwise_problem.h"

namespace convnorm::conv {

// Channels of a block, at most.
template <int V>
inline constexpr int kColumns = V == 1 ? 64 : 16 * V;

struct Lane {
  int lane, way;
  std::int64_t channel;  // the thread's first
  bool on;

  __device__ Lane(const Strips& q, int tile, int vector) {
    const int thread = static_cast<int>(threadIdx.x);
    lane = q.channels_first ? thread % q.lanes : thread / q.ways;
    way = q.channels_first ? thread / q.lanes : thread % q.ways;
    channel = (static_cast<std::int64_t>(tile) * q.lanes + lane) * vector;
    on = channel < q.channels();
  }
};

// The pixels of one source row that kStrip windows of kTaps taps cover, kStep apart. Each is loaded once, all
// of them before the first is used. With fewer taps, what lies behind them is loaded in vain.
template <class T, int V, int kTaps, int kStep>
struct Covered {
  static constexpr int kCount = (kStrip - 1) * kStep + kTaps;
  cuda::Raw<T, V> raw[kCount];
  std::int64_t first, end;

  __device__ Covered(const T* row, const Axis& w, int o) {
    first = o * w.step + w.offset;
    end = w.source;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (inside(i)) raw[i] = cuda::load<T, V>(row + (first + i) * w.source_stride);
  }
  __device__ bool inside(int i) const { return first + i >= 0 && first + i < end; }
};

// f.operator()<kTaps, kStep>() for the window along w.
template <class F>
void with_window(const Strips& q, F f) {
  const Axis& w = q.d.axis[kSpatial - 1];
  if (w.taps <= 3)
    w.step == 2 ? f.template operator()<3, 2>() : f.template operator()<3, 1>();
  else
    w.step == 2 ? f.template operator()<kWideWindow, 2>() : f.template operator()<kWideWindow, 1>();
}

}  // namespace convnorm::conv
