// SPDX-License-Identifier: Apache-2.0
// cells on a GPU: one read of the records into counts in shared memory.
#include "../levels.h"
#include "block.cuh"
#include "launch.h"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kMaxGrid = 1024;
constexpr int kLoads = 4;                         // 16-byte loads in flight per thread
constexpr int64_t kTile = 2 * kLoads * kThreads;  // samples per block and stride

// The high words are needed: a load whose half is unused is narrowed to two of 4 bytes.
__device__ __forceinline__ void count_record(uint32_t key, uint32_t high, uint32_t* bins) {
  atomicAdd(bins + ((key | high) != 0 ? bin_of(key) : kUnseenCell), 1u);
}

// Grid: ceil(num_samples / 4096) blocks of 512 threads, at most kMaxGrid; per stride a thread takes
// four pairs of samples, neighbours in a warp taking neighbouring pairs. A block meets fewer than
// 2^32 samples. counts is zero before.
__global__ void __launch_bounds__(kThreads)
    cells_kernel(const int64_t* __restrict__ records, int64_t num_samples, bool vector,
                 int64_t* counts) {
  __shared__ uint32_t bins[kCells];
  for (int i = static_cast<int>(threadIdx.x); i < kCells; i += kThreads) bins[i] = 0;
  __syncthreads();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kTile;
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile; begin < num_samples;
       begin += stride) {
    if (vector && begin + kTile <= num_samples) {
      const auto* pairs = reinterpret_cast<const uint4*>(records + begin);
      uint4 pair[kLoads];  // low and high word of one record, then of the next
#pragma unroll
      for (int j = 0; j < kLoads; ++j) pair[j] = pairs[j * kThreads + threadIdx.x];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        count_record(pair[j].x, pair[j].y, bins);
        count_record(pair[j].z, pair[j].w, bins);
      }
    } else {
      const int64_t end = begin + kTile < num_samples ? begin + kTile : num_samples;
      for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
        count_record(record_key(records[i]), 0, bins);
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kCells; i += kThreads) {
    if (bins[i] == 0) continue;
    atomicAdd(reinterpret_cast<unsigned long long*>(counts + i),
              static_cast<unsigned long long>(bins[i]));
  }
}

}  // namespace

cudaError_t launch_cells(const int64_t* records, int64_t num_samples, int64_t* counts,
                         cudaStream_t stream) {
  const MayLoad load;
  const cudaError_t zeroed = cudaMemsetAsync(counts, 0, kCells * sizeof(int64_t), stream);
  if (zeroed != cudaSuccess || num_samples == 0) return zeroed;
  const bool vector = aligned(records, sizeof(uint4));
  const unsigned grid = grid_of(num_samples, kTile, kMaxGrid);
  cells_kernel<<<grid, kThreads, 0, stream>>>(records, num_samples, vector, counts);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
