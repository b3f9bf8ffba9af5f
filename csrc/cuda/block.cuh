// SPDX-License-Identifier: Apache-2.0
// What the kernels share: sums and scans over a thread block, in integers, and the tests that allow
// a vector load.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../semantics.h"

namespace prune_engine {
namespace cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }

__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

inline bool aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// A grid of one block per tile elements, at most `most`: the blocks of a smaller one stride.
inline unsigned grid_of(int64_t count, int64_t tile, int64_t most) {
  return static_cast<unsigned>(std::min(most, num_blocks(count, tile)));
}

// Calls body(m) for the elements of [0, count) that are this thread's, neighbours in neighbours.
template <int kThreads, typename Body>
__device__ __forceinline__ void for_each_own(int64_t count, const Body& body) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t m = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; m < count;
       m += stride) {
    body(m);
  }
}

// The sum of the values of the threads before this one; *total is that of all. For all threads of
// a block; may be called again.
template <int kThreads, typename Value>
__device__ __forceinline__ Value exclusive_scan(Value value, Value* total) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ Value warp_total[kWarps];
  Value inclusive = value;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const Value other = __shfl_up_sync(kAllLanes, inclusive, offset);
    if (lane_id() >= offset) inclusive += other;
  }
  __syncthreads();  // all threads have read what an earlier call left
  if (lane_id() == kWarp - 1) warp_total[warp_id()] = inclusive;
  __syncthreads();
  Value before = 0, all = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    const Value sum = warp_total[warp];
    before += warp < warp_id() ? sum : 0;
    all += sum;
  }
  *total = all;
  return before + inclusive - value;
}

}  // namespace cuda
}  // namespace prune_engine
