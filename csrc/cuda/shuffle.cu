// SPDX-License-Identifier: Apache-2.0
// shuffle on a GPU: one thread per place, for any n up to 2^62.
#include "block.cuh"
#include "launch.h"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGrid = 1 << 20;

// Grid: ceil(count / 256) blocks of 256 threads, at most kMaxGrid; one place per thread and stride.
__global__ void __launch_bounds__(kThreads)
    shuffle_kernel(const int64_t* __restrict__ places, int64_t count,
                   const __grid_constant__ Bijection pi, bool inverse,
                   int64_t* __restrict__ result) {
  for_each_own<kThreads>(count, [&](int64_t m) {
    const auto place = static_cast<uint64_t>(places[m]);
    int64_t found = -1;  // of a place outside [0, n), which could walk for ever
    if (place < pi.n) {
      found =
          static_cast<int64_t>(inverse ? invert_bijection(pi, place) : apply_bijection(pi, place));
    }
    result[m] = found;
  });
}

}  // namespace

cudaError_t launch_shuffle(const int64_t* places, int64_t count, const Bijection& pi, bool inverse,
                           int64_t* result, cudaStream_t stream) {
  const MayLoad load;
  if (count == 0) return cudaSuccess;
  const unsigned grid = grid_of(count, kThreads, kMaxGrid);
  shuffle_kernel<<<grid, kThreads, 0, stream>>>(places, count, pi, inverse, result);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
