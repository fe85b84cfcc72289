// Sums over the threads of a block, in an order that shapes alone decide.
#pragma once

#include <cuda_runtime.h>

namespace convnorm::cuda {

// Sums rows of `columns` pairs into row 0, rows halved onto each other. `rows` is a power of two; a pair is
// a[row * columns + column], b[...], in shared memory. Ends with all threads seeing row 0.
__device__ inline void sum_rows(double* a, double* b, int rows, int columns, int thread, int threads) {
  for (int half = rows / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int i = thread; i < half * columns; i += threads) {
      a[i] += a[i + half * columns];
      b[i] += b[i + half * columns];
    }
  }
  __syncthreads();
}

}  // namespace convnorm::cuda
