// SPDX-License-Identifier: Apache-2.0
// compact on a GPU: one launch. plan has counted each block's kept samples, so every thread block
// knows where its own go.
#include "block.cuh"
#include "launch.h"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBytes = 16;  // weight classes per thread
static_assert(kThreads * kBytes == kPlanBlock, "a thread block lists one plan block");

// Bit k is set where byte k of the word is not 0.
__device__ __forceinline__ unsigned kept_bytes(unsigned word) {
  unsigned bits = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) bits |= ((word >> (8 * k)) & 0xffu) != 0 ? 1u << k : 0u;
  return bits;
}

// Bit k says whether sample 16 * threadIdx.x + k of the block is kept.
__device__ __forceinline__ unsigned kept_bits(const uint8_t* __restrict__ classes, int size,
                                              bool vector) {
  if (vector) {
    const uint4 words = reinterpret_cast<const uint4*>(classes)[threadIdx.x];
    return kept_bytes(words.x) | kept_bytes(words.y) << 4 | kept_bytes(words.z) << 8 |
           kept_bytes(words.w) << 12;
  }
  unsigned bits = 0;
  const int first = kBytes * static_cast<int>(threadIdx.x);
  for (int k = 0; k < kBytes && first + k < size; ++k) {
    bits |= classes[first + k] != 0 ? 1u << k : 0u;
  }
  return bits;
}

// Grid: one block of 256 threads per 4096 samples. A thread reads 16 neighbouring classes; to
// write, a warp takes its 512 samples 32 at a time, so that its lanes write neighbouring entries.
__global__ void __launch_bounds__(kThreads)
    compact_kernel(const uint8_t* __restrict__ weight_class, int64_t num_samples, bool vector,
                   const int64_t* __restrict__ block_offsets, int64_t num_kept,
                   int32_t* __restrict__ kept) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPlanBlock;
  const int size = block_size(begin, num_samples);
  const int64_t offset = block_offsets[blockIdx.x];
  const unsigned bits = kept_bits(weight_class + begin, size, vector && size == kPlanBlock);
  int total;
  const int rank = exclusive_scan<kThreads>(__popc(bits), &total);
  int64_t to = offset + __shfl_sync(kAllLanes, rank, 0);  // where the warp's first kept one goes
  const unsigned below = (1u << lane_id()) - 1;
  const int first = static_cast<int>(begin) + kBytes * kWarp * warp_id() + lane_id();
#pragma unroll
  for (int row = 0; row < kBytes; ++row) {
    // Samples 32 * row .. 32 * row + 31 of the warp: the bits of two lanes.
    const unsigned row_bits =
        __shfl_sync(kAllLanes, bits, 2 * row) | __shfl_sync(kAllLanes, bits, 2 * row + 1) << 16;
    // Offsets of other classes must not write outside the list; a cpu raises, a device drops.
    const int64_t mine = to + __popc(row_bits & below);
    if (((row_bits >> lane_id()) & 1u) != 0 &&
        static_cast<uint64_t>(mine) < static_cast<uint64_t>(num_kept)) {
      kept[mine] = first + kWarp * row;
    }
    to += __popc(row_bits);
  }
}

}  // namespace

cudaError_t launch_compact(const uint8_t* weight_class, int64_t num_samples,
                           const int64_t* block_offsets, int64_t num_kept, int32_t* kept,
                           cudaStream_t stream) {
  const MayLoad load;
  if (num_kept == 0) return cudaSuccess;  // Edge case 5
  const auto grid = static_cast<unsigned>(num_blocks(num_samples, kPlanBlock));
  compact_kernel<<<grid, kThreads, 0, stream>>>(
      weight_class, num_samples, aligned(weight_class, kBytes), block_offsets, num_kept, kept);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
