// SPDX-License-Identifier: Apache-2.0
// plan_top on a GPU. The pool's ranks, and 0 for all others, are selected among as records are
// (select.cuh), which finds the edge; then whoever is above it and the tie keys of those at it are
// ranked, of which top marks the k largest; a last read counts them by block.
#include "../philox.h"
#include "select.cuh"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGrid = 1 << 20;
constexpr int kDrawn = 8;  // samples of one Philox call
constexpr int64_t kSeen = int64_t{1} << 32;

// Grid: one thread and stride per eight neighbouring samples.
__global__ void __launch_bounds__(kThreads)
    pool_kernel(const int64_t* __restrict__ records, int64_t num_samples, uint32_t cut,
                uint64_t seed, uint32_t epoch, int64_t* __restrict__ ranked) {
  for_each_own<kThreads>(num_blocks(num_samples, kDrawn), [&](int64_t group) {
    const Philox4 words = keep_words(static_cast<uint64_t>(group), seed, epoch);
    for (int e = 0; e < kDrawn && kDrawn * group + e < num_samples; ++e) {
      const int64_t index = kDrawn * group + e;
      const uint32_t key = record_key(records[index]);
      const bool entered = draw_of_words(words, static_cast<uint64_t>(index)) >= cut;
      ranked[index] = entered ? kSeen | (key == kNoKey ? kUnseenFirst : key) : 0;
    }
  });
}

// Grid: one thread and stride per sample.
__global__ void __launch_bounds__(kThreads)
    edge_kernel(int64_t num_samples, uint64_t seed, uint32_t epoch,
                const SelectState* __restrict__ state, int64_t* __restrict__ ranked) {
  const uint32_t edge = state->key[0];
  for_each_own<kThreads>(num_samples, [&](int64_t index) {
    const uint32_t rank = record_key(ranked[index]);
    if (rank == kNoKey) return;
    uint32_t final_rank = rank > edge ? kUnseenFirst : kNoKey;
    if (rank == edge) final_rank = tie_key(static_cast<uint64_t>(index), seed, epoch);
    ranked[index] = final_rank == kNoKey ? 0 : kSeen | final_rank;
  });
}

// Grid: one block of 256 threads per 4096 samples.
__global__ void __launch_bounds__(kThreads)
    count_kernel(const uint8_t* __restrict__ weight_class, int64_t num_samples,
                 int64_t* __restrict__ block_offsets) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPlanBlock;
  int kept = 0;
  for (int i = static_cast<int>(threadIdx.x); i < kPlanBlock; i += kThreads) {
    if (begin + i < num_samples) kept += weight_class[begin + i];
  }
  int total;
  exclusive_scan<kThreads>(kept, &total);
  if (threadIdx.x == 0) block_offsets[blockIdx.x] = total;
}

cudaError_t rank_pool(const PlanTopArgs& args, SelectArgs select, cudaStream_t stream) {
  const unsigned groups = grid_of(num_blocks(args.num_samples, kDrawn), kThreads, kMaxGrid);
  pool_kernel<<<groups, kThreads, 0, stream>>>(args.records, args.num_samples, args.cut, args.seed,
                                               args.epoch, args.ranked);
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  error = cudaMemsetAsync(select.counts, 0, kSelectCounts * sizeof(uint32_t), stream);
  if (error != cudaSuccess) return error;
  select.num_ranks = 1;
  select.rank[0] = {1 - args.k, 1};  // the k-th from the last, as top counts
  select.den = 1;
  select.out = nullptr;
  error = launch_digits(select, stream);
  if (error != cudaSuccess) return error;
  const unsigned samples = grid_of(args.num_samples, kThreads, kMaxGrid);
  edge_kernel<<<samples, kThreads, 0, stream>>>(args.num_samples, args.seed, args.epoch,
                                                select.state, args.ranked);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_plan_top(const PlanTopArgs& args, const SelectArgs& select,
                            cudaStream_t stream) {
  const MayLoad load;
  const int64_t blocks = num_blocks(args.num_samples, kPlanBlock);
  if (blocks == 0) return launch_offsets(args.block_offsets, 1, blocks, stream);  // Edge case 1
  cudaError_t error = args.k == 0 ? cudaSuccess : rank_pool(args, select, stream);
  if (error == cudaSuccess) error = launch_top(select, args.k, args.weight_class, stream);
  if (error != cudaSuccess) return error;
  count_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      args.weight_class, args.num_samples, args.block_offsets);
  error = cudaGetLastError();
  return error != cudaSuccess ? error : launch_offsets(args.block_offsets, 1, blocks, stream);
}

}  // namespace cuda
}  // namespace prune_engine
