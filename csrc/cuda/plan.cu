// SPDX-License-Identifier: Apache-2.0
// plan on a GPU: one coalesced pass over the records decides every sample and counts each block's
// kept ones; a second, tiny launch turns the counts into offsets. Fixed counts: fixed.cu.
#include "plan.cuh"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kScanThreads = 1024;
constexpr int kScanItems = 4;

// Grid: one block of 256 threads per 4096 samples, 16 samples per thread in 8 neighbouring pairs.
// block_offsets[block] becomes the number kept.
__global__ void __launch_bounds__(kPlanThreads)
    plan_kernel(const int64_t* __restrict__ records, int64_t num_samples, bool vector_in,
                bool vector_out, const float* __restrict__ thresholds,
                const __grid_constant__ Decision rule, int unseen_band,
                uint8_t* __restrict__ weight_class, int64_t* __restrict__ block_offsets) {
  alignas(16) __shared__ uint32_t word[kPairs];
  alignas(16) __shared__ uint8_t classes[kPlanBlock];
  __shared__ Bands bands;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPlanBlock;
  const int size = block_size(begin, num_samples);
  const bool whole = size == kPlanBlock;

  // All loads first: the generator runs while they are in flight, and nothing looks at them before.
  uint4 pair[kThreadPairs];
  load_pairs(records + begin, size, vector_in && whole, pair);
  if (threadIdx.x < kMaxBands) {
    make_bands(thresholds, rule, unseen_band, nullptr, &bands);
  }
  if (rule.draws) make_draws(rule.first + begin, rule.seed, rule.epoch, word);
  __syncthreads();

  uint32_t fate[kThreadSamples];
  make_fates(bands, rule.num_thresholds, make_keys(pair), fate);
  int kept = 0;
#pragma unroll
  for (int j = 0; j < kThreadPairs; ++j) {
    const int pair = j * kPlanThreads + static_cast<int>(threadIdx.x);
    const uint32_t draws = rule.draws ? word[pair] : 0;  // no draw: then every cut is 0
    uint32_t decided[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t mine = fate[2 * j + half];
      const uint32_t draw = pair_draw(draws, half);
      const bool inside = 2 * pair + half < size;
      decided[half] = inside && draw >= fate_cut(mine) ? fate_class(mine) : 0;
      kept += decided[half] != 0 ? 1 : 0;
    }
    reinterpret_cast<uint16_t*>(classes)[pair] =
        static_cast<uint16_t>(decided[0] | decided[1] << 8);
  }
  int total;
  exclusive_scan<kPlanThreads>(kept, &total);  // synchronises: the classes are complete
  store_classes(classes, size, vector_out && whole, weight_class + begin);
  if (threadIdx.x == 0) block_offsets[blockIdx.x] = total;
}

// Grid: one block of 1024 threads per row of blocks + 1 counts; exclusive prefix sums in place, the
// last entry becomes the total. 3466 counts at N = 14.2M: one round.
__global__ void __launch_bounds__(kScanThreads) offsets_kernel(int64_t* counts, int64_t blocks) {
  int64_t* row = counts + blockIdx.x * (blocks + 1);
  int64_t carry = 0;
  for (int64_t tile = 0; tile < blocks; tile += kScanThreads * kScanItems) {
    const int64_t first = tile + kScanItems * static_cast<int64_t>(threadIdx.x);
    int64_t item[kScanItems];
    int64_t sum = 0;
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) {
      item[k] = first + k < blocks ? row[first + k] : 0;
      sum += item[k];
    }
    int64_t total;
    int64_t before = carry + exclusive_scan<kScanThreads>(sum, &total);
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) {
      if (first + k < blocks) row[first + k] = before;
      before += item[k];
    }
    carry += total;
  }
  if (threadIdx.x == 0) row[blocks] = carry;
}

cudaError_t decide(const PlanArgs& args, int64_t blocks, cudaStream_t stream) {
  if (blocks == 0) return cudaSuccess;  // Edge case 1
  plan_kernel<<<static_cast<unsigned>(blocks), kPlanThreads, 0, stream>>>(
      args.records, args.num_samples, aligned(args.records, sizeof(uint4)),
      aligned(args.weight_class, sizeof(uint4)), args.thresholds, args.rule, args.unseen_band,
      args.weight_class, args.block_offsets);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_offsets(int64_t* counts, int rows, int64_t blocks, cudaStream_t stream) {
  offsets_kernel<<<static_cast<unsigned>(rows), kScanThreads, 0, stream>>>(counts, blocks);
  return cudaGetLastError();
}

cudaError_t launch_plan(const PlanArgs& args, cudaStream_t stream) {
  const MayLoad load;
  const int64_t blocks = num_blocks(args.num_samples, kPlanBlock);
  cudaError_t error = cudaSuccess;
  if (args.shares.den == 0 || blocks == 0) {
    error = decide(args, blocks, stream);
  } else {
    error = launch_plan_fixed(args, stream);
  }
  return error != cudaSuccess ? error : launch_offsets(args.block_offsets, 1, blocks, stream);
}

}  // namespace cuda
}  // namespace prune_engine
