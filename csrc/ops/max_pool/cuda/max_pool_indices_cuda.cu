// What works by indices into the plane (adaptive_max_pool.h): spread and place. Indices may be any, so
// windows are of no help: a block has a tile of some planes in shared memory, reads all indices of these
// planes in order, and writes each element of its tile once.
//
//   spread   Threads of a block whose indices are the same take turns, the first output first: a sum has the
//            order of the outputs, as on the CPU, and needs atomics on whole numbers only.
//   place    The last output of each element is the greatest of its numbers, again a whole number.
//
// Indices outside the plane add nothing to a sum. Un-pooling cannot raise an error here without waiting for
// the device, so it fills a plane that has one with NaN.
#include "cuda/image.cuh"
#include "cuda/launch.h"
#include "ops/max_pool/cuda/adaptive_max_pool_problem.h"
#include "ops/max_pool/cuda/max_pool_codes.cuh"

namespace convnorm::max_pool {
namespace {

using cuda::Steps;

// Elements of a block's tile: 32 KB at most, with the number of an output beside each sum.
template <class T>
inline constexpr int kSumCells = sizeof(T) == 8 ? 2048 : 4096;
constexpr int kPlaceCells = 8192;

// The tile of a block.
struct Tile {
  std::int64_t n;
  int c, planes, first, positions;

  __device__ explicit Tile(const Tiles& t) {
    n = blockIdx.x / t.blocks_per_image();
    const auto rest = static_cast<int>(blockIdx.x - n * t.blocks_per_image());
    c = rest / t.position_tiles * t.planes;
    planes = t.channels - c < t.planes ? t.channels - c : t.planes;
    first = rest % t.position_tiles * t.positions;
    positions = t.plane - first < t.positions ? t.plane - first : t.positions;
  }
};

// An element of the indices that a block reads: where its value is, and which cell of the tile it is for.
struct Item {
  bool inside = false, valid = true;  // in the tile; in the plane, or no item at all
  int k = 0, cell = 0;
  std::int64_t value = 0;

  __device__ Item(const Tiles& t, const Tile& tile, int e, const std::int64_t* indices, const Steps& at,
                  const Steps& values) {
    if (e >= t.elements()) return;
    int output, o[kSpatial];
    t.element(e, k, output);
    if (k >= tile.planes) return;
    t.coordinates(output, o);
    const std::int64_t index = indices[at(tile.n, tile.c + k, o)];
    valid = index >= 0 && index < t.plane;
    inside = index >= tile.first && index < tile.first + tile.positions;
    if (!inside) return;
    cell = t.cell(k, static_cast<int>(index) - tile.first);
    value = values(tile.n, tile.c + k, o);
  }
};

// f(plane, cell, offset in the result) for the elements of the tile, in the order of memory.
template <class F>
__device__ inline void each_cell(const Tiles& t, const Tile& tile, const Steps& to, F f) {
  const int extent = t.channels_first ? t.planes : t.positions;
  for (int cell = static_cast<int>(threadIdx.x); cell < t.planes * t.positions; cell += kThreads) {
    const int outer = cell / extent, inner = cell - outer * extent;
    const int k = t.channels_first ? inner : outer, position = t.channels_first ? outer : inner;
    if (k < tile.planes && position < tile.positions)
      f(k, cell, tile.n * to.n + (tile.c + k) * to.c + (tile.first + position) * to.s[2]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    spread_kernel(const T* values, const std::int64_t* indices, T* plane, __grid_constant__ const Tiles t,
                  __grid_constant__ const Steps from, __grid_constant__ const Steps at,
                  __grid_constant__ const Steps to) {
  using C = compute_t<T>;
  __shared__ C sums[kSumCells<T>];
  __shared__ int turn[kSumCells<T>];  // the thread that adds next
  const Tile tile(t);
  const int thread = static_cast<int>(threadIdx.x), cells = t.planes * t.positions;
  for (int i = thread; i < cells; i += kThreads) sums[i] = 0, turn[i] = kThreads;
  for (int first = 0; first < t.elements(); first += kThreads) {
    const Item item(t, tile, first + thread, indices, at, from);
    bool waits = item.inside;
    const C value = waits ? cuda::load1(values + item.value) : C{};
    while (__syncthreads_or(waits)) {
      if (waits) atomicMin(&turn[item.cell], thread);
      __syncthreads();
      const bool mine = waits && turn[item.cell] == thread;
      __syncthreads();
      if (!mine) continue;
      sums[item.cell] += value;
      turn[item.cell] = kThreads;
      waits = false;
    }
  }
  each_cell(t, tile, to,
            [&](int, int cell, std::int64_t offset) { cuda::store1(plane + offset, sums[cell]); });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    place_kernel(const T* values, const std::int64_t* indices, T* plane, __grid_constant__ const Tiles t,
                 __grid_constant__ const Steps from, __grid_constant__ const Steps at,
                 __grid_constant__ const Steps to) {
  __shared__ int last[kPlaceCells];
  __shared__ bool broken[kMostPlanes];
  const Tile tile(t);
  const int thread = static_cast<int>(threadIdx.x), cells = t.planes * t.positions;
  for (int i = thread; i < cells; i += kThreads) last[i] = -1;
  if (thread < kMostPlanes) broken[thread] = false;
  __syncthreads();
  for (int e = thread; e < t.elements(); e += kThreads) {
    const Item item(t, tile, e, indices, at, from);
    if (!item.valid) broken[item.k] = true;
    if (item.inside) atomicMax(&last[item.cell], e);
  }
  __syncthreads();
  each_cell(t, tile, to, [&](int k, int cell, std::int64_t offset) {
    cuda::Raw<T, 1> value;
    if (broken[k]) {
      const compute_t<T> nan[1] = {static_cast<compute_t<T>>(NAN)};
      value = cuda::round<T, 1>(nan);
    } else if (last[cell] >= 0) {
      int plane_of, output, o[kSpatial];
      t.element(last[cell], plane_of, output);
      t.coordinates(output, o);
      value = cuda::load<T, 1>(values + from(tile.n, tile.c + k, o));
    }
    cuda::store(plane + offset, value);
  });
}

}  // namespace

void spread_cuda(const Params& p, const void* values, const void* indices, void* plane) {
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    const Tiles t = tiles_of(p, kSumCells<T>);
    cuda::OnDevice(p.device).launch(spread_kernel<T>, p.n * t.blocks_per_image(), kThreads,
                                    static_cast<const T*>(values), static_cast<const std::int64_t*>(indices),
                                    static_cast<T*>(plane), t, cuda::steps_of(p.output),
                                    cuda::steps_of(p.argmax), cuda::steps_of(p.input));
  });
}

BadIndex place_cuda(const Params& p, const void* values, const void* indices, void* plane) {
  const Tiles t = tiles_of(p, kPlaceCells);
  dispatch(p.dtype, [&](auto type) {
    using T = decltype(type);
    cuda::OnDevice(p.device).launch(place_kernel<T>, p.n * t.blocks_per_image(), kThreads,
                                    static_cast<const T*>(values), static_cast<const std::int64_t*>(indices),
                                    static_cast<T*>(plane), t, cuda::steps_of(p.output),
                                    cuda::steps_of(p.argmax), cuda::steps_of(p.input));
  });
  return {};
}

}  // namespace convnorm::max_pool
