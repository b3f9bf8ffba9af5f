// SPDX-License-Identifier: Apache-2.0
// plan_levels on a GPU: as plan.cu, with the class of a sample's cell in place of its band's.
#include "../levels.h"
#include "plan.cuh"

namespace prune_engine {
namespace cuda {
namespace {

static_assert(kPlanThreads == kNumClasses, "a cut per thread");

// Grid: one block of 256 threads per 4096 samples, 16 samples per thread in 8 neighbouring pairs.
// block_offsets[block] becomes the number kept. Four blocks to a processor: with five in mind ptxas
// spills a register on sm_100.
__global__ void __launch_bounds__(kPlanThreads, 4)
    plan_levels_kernel(const int64_t* __restrict__ records, int64_t num_samples, bool vector_in,
                       bool vector_out, const int32_t* __restrict__ top_in,
                       const int32_t* __restrict__ unseen_in, const int32_t* __restrict__ cuts,
                       uint64_t seed, uint32_t epoch, int64_t first,
                       uint8_t* __restrict__ weight_class, int64_t* __restrict__ block_offsets) {
  alignas(16) __shared__ uint32_t word[kPairs];
  alignas(16) __shared__ uint8_t classes[kPlanBlock];
  __shared__ int32_t cut[kNumClasses];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPlanBlock;
  const int size = block_size(begin, num_samples);
  const bool whole = size == kPlanBlock;
  uint4 pairs[kThreadPairs];
  load_pairs(records + begin, size, vector_in && whole, pairs);
  cut[threadIdx.x] = cuts[threadIdx.x];
  const int32_t top = *top_in, never = *unseen_in;
  make_draws(first + begin, seed, epoch, word);
  const int32_t unseen = level_of(never, top);
  Keys<kThreadSamples> keys = make_keys(pairs);
#pragma unroll
  for (int e = 0; e < kThreadSamples; ++e) {
    const auto cell = static_cast<int32_t>(cell_of(keys.key[e]));
    keys.key[e] = (keys.seen >> e & 1u) != 0 ? level_of(cell, top) : unseen;
  }
  __syncthreads();

  int kept = 0;
#pragma unroll
  for (int j = 0; j < kThreadPairs; ++j) {
    const int pair = j * kPlanThreads + static_cast<int>(threadIdx.x);
    const uint32_t draws = word[pair];
    uint32_t decided[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t level = keys.key[2 * j + half];
      const bool stays =
          2 * pair + half < size && static_cast<int32_t>(pair_draw(draws, half)) >= cut[level];
      decided[half] = stays ? level : 0;
      kept += stays ? 1 : 0;
    }
    reinterpret_cast<uint16_t*>(classes)[pair] =
        static_cast<uint16_t>(decided[0] | decided[1] << 8);
  }
  int total;
  exclusive_scan<kPlanThreads>(kept, &total);  // synchronises: classes are complete
  store_classes(classes, size, vector_out && whole, weight_class + begin);
  if (threadIdx.x == 0) block_offsets[blockIdx.x] = total;
}

}  // namespace

cudaError_t launch_plan_levels(const LevelPlanArgs& args, cudaStream_t stream) {
  const MayLoad load;
  const int64_t blocks = num_blocks(args.num_samples, kPlanBlock);
  if (blocks > 0) {
    plan_levels_kernel<<<static_cast<unsigned>(blocks), kPlanThreads, 0, stream>>>(
        args.records, args.num_samples, aligned(args.records, sizeof(uint4)),
        aligned(args.weight_class, sizeof(uint4)), args.top, args.unseen, args.cut, args.seed,
        args.epoch, args.first, args.weight_class, args.block_offsets);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  return launch_offsets(args.block_offsets, 1, blocks, stream);
}

}  // namespace cuda
}  // namespace prune_engine
