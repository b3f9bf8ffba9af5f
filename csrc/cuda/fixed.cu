// SPDX-License-Identifier: Apache-2.0
// plan with fixed counts on a GPU: of a band's n samples exactly floor(n * num / den) stay, those
// with the largest draws, ties to the smaller index. A histogram of the draws gives each band's
// cut; the deciding pass (plan.cu) counts the ties of each block; prefix sums rank them; the blocks
// with ties beyond the quota drop them. Integers throughout: no order of threads can show.
#include "plan.cuh"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kHistogramGrid = 2048;
constexpr int kCutThreads = 1024;
constexpr int kBins = static_cast<int>(kDraws) / kCutThreads;  // 64 draws per thread
constexpr int kSettleThreads = 512;
constexpr int kGroupSize = 8;  // samples of one Philox call, in one thread
static_assert(kSettleThreads * kGroupSize == kPlanBlock, "a thread block settles one plan block");

// Grid: one block of 256 threads per 4096 samples, at most kHistogramGrid, striding. histogram
// [band][draw] is zero before; a band has fewer than 2^31 samples.
__global__ void __launch_bounds__(kPlanThreads)
    histogram_kernel(const int64_t* __restrict__ records, int64_t num_samples, bool vector,
                     const float* __restrict__ thresholds, const __grid_constant__ Decision rule,
                     int unseen_band, uint32_t* histogram) {
  alignas(16) __shared__ uint32_t word[kPairs];
  __shared__ Bands bands;
  make_bands(thresholds, rule, unseen_band, nullptr, &bands);
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t begin = block * kPlanBlock;
    const int size = block_size(begin, num_samples);
    Keys<kThreadSamples> keys;
    uint32_t fate[kThreadSamples];
    load_keys(records + begin, size, vector && size == kPlanBlock, &keys);
    __syncthreads();  // the draws of the last block have been read
    make_draws(begin, rule.seed, rule.epoch, word);
    __syncthreads();  // also: the bands are made
    make_fates(bands, rule.num_thresholds, keys, fate);
#pragma unroll
    for (int e = 0; e < kThreadSamples; ++e) {
      const int pair = (e / 2) * kPlanThreads + static_cast<int>(threadIdx.x);
      const uint32_t band = fate_band(fate[e]);
      if (2 * pair + e % 2 < size && band != kNoBand) {
        atomicAdd(histogram + band * kDraws + pair_draw(word[pair], e % 2), 1u);
      }
    }
  }
}

// Grid: one block of 1024 threads per band; thread t sums draws 64 t .. 64 t + 63. The cut is the
// largest draw at or above which there are at least as many members as stay; one thread has it.
__global__ void __launch_bounds__(kCutThreads)
    cut_kernel(const uint32_t* __restrict__ histogram, const __grid_constant__ Shares shares,
               FixedCuts* __restrict__ fixed) {
  const int band = static_cast<int>(blockIdx.x);
  const uint32_t* count = histogram + band * kDraws + kBins * threadIdx.x;
  int64_t mine = 0;
#pragma unroll
  for (int k = 0; k < kBins / 4; ++k) {
    const uint4 four = reinterpret_cast<const uint4*>(count)[k];
    mine += static_cast<int64_t>(four.x) + four.y + four.z + four.w;
  }
  int64_t members;
  const int64_t below = exclusive_scan<kCutThreads>(mine, &members);
  const int64_t above = members - below - mine;
  const int64_t keep = members * shares.num[band] / shares.den;  // below 2^62
  if (keep == 0) {
    if (threadIdx.x == 0) {
      fixed->cut[band] = kCutAll;
      fixed->ties[band] = 0;
    }
    return;
  }
  if (above >= keep || above + mine < keep) return;
  int64_t at_least = above;  // members whose draw is at least 64 t + bin
  int bin = kBins;
  while (at_least < keep) at_least += count[--bin];
  fixed->cut[band] = static_cast<uint32_t>(kBins * static_cast<int>(threadIdx.x) + bin);
  fixed->ties[band] = keep - (at_least - count[bin]);
}

// Grid: one block of 512 threads per 4096 samples, 8 neighbours per thread, so that the order of
// the threads is that of the indices. ties [band][block]: how many ties come before the block.
// Nearly every block leaves at once: one sample in 65536 is a tie.
__global__ void __launch_bounds__(kSettleThreads)
    settle_kernel(const int64_t* __restrict__ records, int64_t num_samples,
                  const float* __restrict__ thresholds, const __grid_constant__ Decision rule,
                  int unseen_band, const FixedCuts* __restrict__ fixed,
                  const int64_t* __restrict__ ties, uint8_t* __restrict__ weight_class,
                  int64_t* __restrict__ block_offsets) {
  const int64_t* row = ties + blockIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) + 1;
  bool beyond = false;  // the same in all threads
  for (int band = 0; band <= rule.num_thresholds; ++band) {
    const int64_t before = row[band * stride], after = row[band * stride + 1];
    beyond |= after > before && after > fixed->ties[band];
  }
  if (!beyond) return;

  __shared__ Bands bands;
  make_bands(thresholds, rule, unseen_band, fixed, &bands);
  __syncthreads();
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * kPlanBlock + kGroupSize * static_cast<int>(threadIdx.x);
  const Philox4 words =
      keep_words(static_cast<uint64_t>(first) / kGroupSize, rule.seed, rule.epoch);
  Keys<kGroupSize> keys;
  uint32_t fate[kGroupSize];
  keys.seen = 0;
#pragma unroll
  for (int e = 0; e < kGroupSize; ++e) {
    const int64_t record = first + e < num_samples ? records[first + e] : 0;
    keys.seen |= record != 0 ? 1u << e : 0u;
    keys.key[e] = record_key(record);
  }
  make_fates(bands, rule.num_thresholds, keys, fate);

  int dropped = 0;
  for (int band = 0; band <= rule.num_thresholds; ++band) {
    unsigned tied = 0;  // bit e: sample e is a tie of this band
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      const bool tie = first + e < num_samples &&
                       fate_band(fate[e]) == static_cast<uint32_t>(band) &&
                       pair_draw(words.word[e / 2], e % 2) == fate_cut(fate[e]);
      tied |= tie ? 1u << e : 0u;
    }
    int total;
    int64_t rank = row[band * stride] + exclusive_scan<kSettleThreads>(__popc(tied), &total);
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      if (((tied >> e) & 1u) == 0) continue;
      if (rank++ < fixed->ties[band]) continue;
      weight_class[first + e] = 0;
      ++dropped;
    }
  }
  int total;
  exclusive_scan<kSettleThreads>(dropped, &total);
  if (threadIdx.x == 0) block_offsets[blockIdx.x] -= total;
}

}  // namespace

cudaError_t launch_fix_counts(const PlanArgs& args, cudaStream_t stream) {
  const int bands = args.rule.num_thresholds + 1;
  const int64_t blocks = num_blocks(args.num_samples, kPlanBlock);
  const size_t bytes = static_cast<size_t>(bands * kDraws) * sizeof(uint32_t);
  cudaError_t error = cudaMemsetAsync(args.scratch.histogram, 0, bytes, stream);
  if (error != cudaSuccess) return error;
  const unsigned grid = grid_of(blocks, 1, kHistogramGrid);
  histogram_kernel<<<grid, kPlanThreads, 0, stream>>>(
      args.records, args.num_samples, aligned(args.records, sizeof(uint4)), args.thresholds,
      args.rule, args.unseen_band, args.scratch.histogram);
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  cut_kernel<<<static_cast<unsigned>(bands), kCutThreads, 0, stream>>>(
      args.scratch.histogram, args.shares, args.scratch.cuts);
  return cudaGetLastError();
}

cudaError_t launch_settle_ties(const PlanArgs& args, cudaStream_t stream) {
  const int64_t blocks = num_blocks(args.num_samples, kPlanBlock);
  const cudaError_t error =
      launch_offsets(args.scratch.ties, args.rule.num_thresholds + 1, blocks, stream);
  if (error != cudaSuccess) return error;
  settle_kernel<<<static_cast<unsigned>(blocks), kSettleThreads, 0, stream>>>(
      args.records, args.num_samples, args.thresholds, args.rule, args.unseen_band,
      args.scratch.cuts, args.scratch.ties, args.weight_class, args.block_offsets);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
