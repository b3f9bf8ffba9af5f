// SPDX-License-Identifier: Apache-2.0
// draw on a GPU: one thread per index.
#include "../philox.h"
#include "block.cuh"
#include "launch.h"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGrid = 1 << 20;

// Grid: ceil(count / 256) blocks of 256 threads, at most kMaxGrid; one index per thread and stride.
__global__ void __launch_bounds__(kThreads)
    draw_kernel(const int64_t* __restrict__ indices, int64_t count, uint64_t seed, uint32_t epoch,
                uint32_t stream_number, int64_t* __restrict__ result) {
  for_each_own<kThreads>(count, [&](int64_t m) {
    const auto index = static_cast<uint64_t>(indices[m]);
    const bool valid = index <= static_cast<uint64_t>(kMaxIndex);
    const uint32_t drawn = stream_draw(index, seed, epoch, stream_number);
    result[m] = valid ? static_cast<int64_t>(drawn) : -1;
  });
}

}  // namespace

cudaError_t launch_draw(const int64_t* indices, int64_t count, int64_t seed, int64_t epoch,
                        int64_t stream_number, int64_t* result, cudaStream_t stream) {
  const MayLoad load;
  if (count == 0) return cudaSuccess;
  const unsigned grid = grid_of(count, kThreads, kMaxGrid);
  draw_kernel<<<grid, kThreads, 0, stream>>>(indices, count, static_cast<uint64_t>(seed),
                                             static_cast<uint32_t>(epoch),
                                             static_cast<uint32_t>(stream_number), result);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
