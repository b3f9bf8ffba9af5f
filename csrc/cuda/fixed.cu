// SPDX-License-Identifier: Apache-2.0
// plan with fixed counts on a GPU: of a band's n samples exactly floor(n * num / den) stay, those
// with the largest draws, ties to the smaller index. One read of the records counts the high bytes
// of each band's draws and leaves every sample's band where its class will be; what follows reads
// that byte and makes the draw again. The low bytes of those whose high byte is the cut's give the
// cut; the deciding pass counts the ties of each block; prefix sums rank them; the blocks with ties
// beyond the quota drop them. Integers throughout: no order of threads can show.
#include "plan.cuh"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int64_t kHistogramGrid = 528;  // as kMaxGrid of select.cu
constexpr int kNeighbours = 16;          // samples of a thread that reads their bands
static_assert(kPlanThreads * kNeighbours == kPlanBlock, "a thread block takes one plan block");
static_assert(kPlanThreads == kByteBins, "a bin a thread");
constexpr int kSettleThreads = 512;
constexpr int kGroupSize = 8;  // samples of one Philox call, in one thread
static_assert(kSettleThreads * kGroupSize == kPlanBlock, "a thread block settles one plan block");

// Counts of bytes, in shared memory, for all threads of a block.
struct ByteCounts {
  uint32_t at[kMaxBands * kByteBins];
};

__device__ __forceinline__ void clear_counts(ByteCounts* counts) {
#pragma unroll
  for (int band = 0; band < kMaxBands; ++band) counts->at[band * kByteBins + threadIdx.x] = 0;
}

__device__ __forceinline__ void flush_counts(const ByteCounts& counts, int num_thresholds,
                                             uint32_t* __restrict__ out) {
  __syncthreads();
  for (int band = 0; band <= num_thresholds; ++band) {
    const int bin = band * kByteBins + static_cast<int>(threadIdx.x);
    if (counts.at[bin] != 0) atomicAdd(out + bin, counts.at[bin]);
  }
}

// Grid: one block of 256 threads per 4096 samples, at most kHistogramGrid, striding. counts
// [band][high byte] is zero before; a band has fewer than 2^31 samples. bands [num_samples] gets
// each sample's, kNoBand where it competes in none.
__global__ void __launch_bounds__(kPlanThreads)
    histogram_kernel(const int64_t* __restrict__ records, int64_t num_samples, bool vector_in,
                     bool vector_out, const float* __restrict__ thresholds,
                     const __grid_constant__ Decision rule, int unseen_band,
                     uint8_t* __restrict__ bands_of, uint32_t* counts) {
  alignas(16) __shared__ uint32_t word[kPairs];
  alignas(16) __shared__ uint8_t found[kPlanBlock];
  __shared__ ByteCounts bytes;
  __shared__ Bands bands;
  make_bands(thresholds, rule, unseen_band, nullptr, &bands);
  clear_counts(&bytes);
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t begin = block * kPlanBlock;
    const int size = block_size(begin, num_samples);
    uint4 pair[kThreadPairs];
    load_pairs(records + begin, size, vector_in && size == kPlanBlock, pair);
    __syncthreads();  // the draws and the bands of the last block have been read
    // Always; but without a branch ptxas looks at what is loaded before, and waits (on sm_100 and
    // sm_120 with it as well).
    if (rule.draws) make_draws(begin, rule.seed, rule.epoch, word);
    __syncthreads();  // also: the bands are made, the counts zero
    uint32_t fate[kThreadSamples];
    make_fates(bands, rule.num_thresholds, make_keys(pair), fate);
#pragma unroll
    for (int j = 0; j < kThreadPairs; ++j) {
      const int pair = j * kPlanThreads + static_cast<int>(threadIdx.x);
      const uint32_t draws = word[pair];
      uint32_t band[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        band[half] = fate_band(fate[2 * j + half]);
        if (2 * pair + half < size && band[half] != kNoBand) {
          atomicAdd(bytes.at + band[half] * kByteBins + (pair_draw(draws, half) >> 8), 1u);
        }
      }
      reinterpret_cast<uint16_t*>(found)[pair] = static_cast<uint16_t>(band[0] | band[1] << 8);
    }
    __syncthreads();
    store_classes(found, size, vector_out && size == kPlanBlock, bands_of + begin);
  }
  flush_counts(bytes, rule.num_thresholds, counts);
}

// A thread's 16 neighbours: their bands, 4 to a word, and the Philox words of their draws.
struct Neighbours {
  uint32_t band[kNeighbours / 4];
  Philox4 words[kNeighbours / 8];
};

// Past the end: kNoBand.
__device__ __forceinline__ void load_neighbours(const uint8_t* bands_of, int64_t first,
                                                int64_t num_samples, bool vector,
                                                const Decision& rule, Neighbours* mine) {
  if (vector && first + kNeighbours <= num_samples) {
    const uint4 read = *reinterpret_cast<const uint4*>(bands_of + first);
    const uint32_t band[kNeighbours / 4] = {read.x, read.y, read.z, read.w};
#pragma unroll
    for (int k = 0; k < kNeighbours / 4; ++k) mine->band[k] = band[k];
  } else {
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      const uint32_t band = first + e < num_samples ? bands_of[first + e] : kNoBand;
      mine->band[e / 4] = (e % 4 == 0 ? 0 : mine->band[e / 4]) | band << (8 * (e % 4));
    }
  }
#pragma unroll
  for (int c = 0; c < kNeighbours / 8; ++c) {
    mine->words[c] = keep_words(static_cast<uint64_t>(first) / 8 + c, rule.seed, rule.epoch);
  }
}

__device__ __forceinline__ uint32_t neighbour_band(const Neighbours& mine, int e) {
  return (mine.band[e / 4] >> (8 * (e % 4))) & 0xffu;
}

__device__ __forceinline__ uint32_t neighbour_draw(const Neighbours& mine, int e) {
  return pair_draw(mine.words[e / 8].word[e % 8 / 2], e % 2);
}

// Grid: as histogram_kernel. counts [band][low byte] is zero before: of the samples whose draw has
// the high byte of their band's cut.
__global__ void __launch_bounds__(kPlanThreads)
    refine_kernel(const uint8_t* __restrict__ bands_of, int64_t num_samples, bool vector,
                  const __grid_constant__ Decision rule, const FixedCuts* __restrict__ fixed,
                  uint32_t* counts) {
  __shared__ ByteCounts bytes;
  __shared__ uint32_t high[kNoBand + 1];
  clear_counts(&bytes);
  if (threadIdx.x <= kNoBand) {
    const bool band = static_cast<int>(threadIdx.x) <= rule.num_thresholds;
    high[threadIdx.x] = (band ? fixed->cut[threadIdx.x] : kCutAll) >> 8;  // no byte is 256
  }
  __syncthreads();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kPlanBlock;
  for (int64_t begin = blockIdx.x * kPlanBlock; begin < num_samples; begin += stride) {
    const int64_t first = begin + kNeighbours * static_cast<int64_t>(threadIdx.x);
    Neighbours mine;
    load_neighbours(bands_of, first, num_samples, vector, rule, &mine);
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      const uint32_t band = neighbour_band(mine, e), draw = neighbour_draw(mine, e);
      if (draw >> 8 == high[band]) {  // one sample in 256
        atomicAdd(bytes.at + band * kByteBins + (draw & 0xffu), 1u);
      }
    }
  }
  flush_counts(bytes, rule.num_thresholds, counts);
}

// Grid: one block of 256 threads per band, a byte a thread. The cut is the largest draw at or above
// which there are at least as many members as stay; its high byte first, then its low one. One
// thread has it. fixed is not __restrict__: see pick_kernel in select.cu.
__global__ void __launch_bounds__(kByteBins)
    cut_kernel(const uint32_t* __restrict__ counts, bool low, const __grid_constant__ Shares shares,
               FixedCuts* fixed) {
  const int band = static_cast<int>(blockIdx.x);
  const int64_t mine = counts[band * kByteBins + threadIdx.x];
  const uint32_t before = low ? fixed->cut[band] : 0;
  const int64_t stay = low ? fixed->ties[band] : 0;
  int64_t members;
  const int64_t below = exclusive_scan<kByteBins>(mine, &members);  // synchronises: all have read
  const int64_t above = members - below - mine;
  const int64_t keep = low ? stay : members * shares.num[band] / shares.den;  // below 2^62
  if (keep == 0) {
    if (threadIdx.x == 0) {
      fixed->cut[band] = kCutAll;
      fixed->ties[band] = 0;
    }
    return;
  }
  if (above >= keep || above + mine < keep) return;
  fixed->cut[band] = low ? before | threadIdx.x : threadIdx.x << 8;
  fixed->ties[band] = keep - above;
}

// Grid: one block of 256 threads per 4096 samples, 16 neighbours a thread. A sample's band becomes
// its class. One whose draw is its band's cut is a tie: kept for now and counted in ties
// [band][block]. block_offsets[block] becomes the number kept.
__global__ void __launch_bounds__(kPlanThreads)
    decide_kernel(int64_t num_samples, bool vector, const __grid_constant__ Decision rule,
                  const FixedCuts* __restrict__ fixed, uint8_t* weight_class,
                  int64_t* __restrict__ block_offsets, int64_t* __restrict__ ties) {
  __shared__ uint32_t fates[kNoBand + 1];
  __shared__ int tied[kMaxBands];
  if (threadIdx.x < kMaxBands) tied[threadIdx.x] = 0;
  if (static_cast<int>(threadIdx.x) <= rule.num_thresholds) {
    fates[threadIdx.x] = make_fate(fixed->cut[threadIdx.x], rule.weight_class[threadIdx.x]);
  }
  // Edge case 6: in no band competes who has no score and is kept.
  if (threadIdx.x == kNoBand) fates[kNoBand] = make_fate(0, 1);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPlanBlock +
                        kNeighbours * static_cast<int64_t>(threadIdx.x);
  Neighbours mine;
  load_neighbours(weight_class, first, num_samples, vector, rule, &mine);
  __syncthreads();
  int kept = 0;
  uint32_t decided[kNeighbours / 4] = {};
#pragma unroll
  for (int e = 0; e < kNeighbours; ++e) {
    const uint32_t band = neighbour_band(mine, e), draw = neighbour_draw(mine, e);
    const uint32_t fate = fates[band];
    const bool inside = first + e < num_samples;
    const uint32_t given = inside && draw >= fate_cut(fate) ? fate_class(fate) : 0;
    decided[e / 4] |= given << (8 * (e % 4));
    kept += given != 0 ? 1 : 0;
    if (inside && draw == fate_cut(fate) && band != kNoBand) {
      atomicAdd(&tied[band], 1);  // one sample in 65536
    }
  }
  if (vector && first + kNeighbours <= num_samples) {
    *reinterpret_cast<uint4*>(weight_class + first) =
        make_uint4(decided[0], decided[1], decided[2], decided[3]);
  } else {
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      if (first + e < num_samples) {
        weight_class[first + e] = static_cast<uint8_t>(decided[e / 4] >> (8 * (e % 4)));
      }
    }
  }
  int total;
  exclusive_scan<kPlanThreads>(kept, &total);  // synchronises: tied is complete
  if (threadIdx.x == 0) block_offsets[blockIdx.x] = total;
  if (static_cast<int>(threadIdx.x) <= rule.num_thresholds) {
    ties[threadIdx.x * (static_cast<int64_t>(gridDim.x) + 1) + blockIdx.x] = tied[threadIdx.x];
  }
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

// The cuts of all bands, a byte after a byte.
cudaError_t find_cuts(const PlanArgs& args, unsigned grid, cudaStream_t stream) {
  const auto bands = static_cast<unsigned>(args.rule.num_thresholds + 1);
  const bool vector = aligned(args.weight_class, sizeof(uint4));
  uint32_t* high = args.scratch.histogram;
  uint32_t* low = high + kMaxBands * kByteBins;
  histogram_kernel<<<grid, kPlanThreads, 0, stream>>>(
      args.records, args.num_samples, aligned(args.records, sizeof(uint4)), vector, args.thresholds,
      args.rule, args.unseen_band, args.weight_class, high);
  cut_kernel<<<bands, kByteBins, 0, stream>>>(high, false, args.shares, args.scratch.cuts);
  refine_kernel<<<grid, kPlanThreads, 0, stream>>>(args.weight_class, args.num_samples, vector,
                                                   args.rule, args.scratch.cuts, low);
  cut_kernel<<<bands, kByteBins, 0, stream>>>(low, true, args.shares, args.scratch.cuts);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_plan_fixed(const PlanArgs& args, cudaStream_t stream) {
  const int64_t blocks = num_blocks(args.num_samples, kPlanBlock);
  cudaError_t error =
      cudaMemsetAsync(args.scratch.histogram, 0, kHistogramCounts * sizeof(uint32_t), stream);
  if (error != cudaSuccess) return error;
  error = find_cuts(args, grid_of(blocks, 1, kHistogramGrid), stream);
  if (error != cudaSuccess) return error;
  decide_kernel<<<static_cast<unsigned>(blocks), kPlanThreads, 0, stream>>>(
      args.num_samples, aligned(args.weight_class, sizeof(uint4)), args.rule, args.scratch.cuts,
      args.weight_class, args.block_offsets, args.scratch.ties);
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  error = launch_offsets(args.scratch.ties, args.rule.num_thresholds + 1, blocks, stream);
  if (error != cudaSuccess) return error;
  settle_kernel<<<static_cast<unsigned>(blocks), kSettleThreads, 0, stream>>>(
      args.records, args.num_samples, args.thresholds, args.rule, args.unseen_band,
      args.scratch.cuts, args.scratch.ties, args.weight_class, args.block_offsets);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
