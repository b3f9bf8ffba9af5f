// SPDX-License-Identifier: Apache-2.0
// select on a GPU: three reads of the samples and three tiny launches between them (select.cuh).
#include "select.cuh"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int64_t kMaxGrid = 528;  // four blocks on each of the 132 multiprocessors of an H200

// Grid: blocks of 512 threads, 16 samples a thread and stride. counts [1 or ranks][2048] is zero
// before. Equal keys meet on one address of shared memory, which serialises a warp's additions: all
// equal costs a few times the read, and nothing else gets worse.
// The first digit has a kernel of its own, for it is the same for all ranks; the two others share
// one.
template <typename Sample, bool kFirst>
__global__ void __launch_bounds__(kSelectThreads)
    digit_kernel(const Sample* __restrict__ values, int64_t num_samples, bool vector, int later,
                 const SelectState* __restrict__ state, int num_ranks,
                 uint32_t* __restrict__ counts) {
  constexpr int kRows = kFirst ? 1 : kMaxRanks;
  __shared__ uint32_t bins[kRows * kBins];
  __shared__ uint32_t above[kMaxRanks];
  const int level = kFirst ? 0 : later, rows = kFirst ? 1 : num_ranks;
  const int shift = digit_shift<false>(level), shift_above = digit_shift<false>(level - 1);
  const uint32_t mask = digit_of<false>(0xffffffffu, level);
  for (int i = static_cast<int>(threadIdx.x); i < rows * kBins; i += kSelectThreads) bins[i] = 0;
  if (!kFirst && static_cast<int>(threadIdx.x) < num_ranks) {
    above[threadIdx.x] = above_digit<false>(state->key[threadIdx.x], level);
  }
  __syncthreads();
  visit_seen(values, num_samples, vector, [&](uint32_t, uint32_t key) {
    const uint32_t digit = (key >> shift) & mask;
    if constexpr (kFirst) {
      atomicAdd(bins + digit, 1u);
    } else {
#pragma unroll 1  // one rank mostly, five at most
      for (int r = 0; r < rows; ++r) {
        if (key >> shift_above == above[r]) atomicAdd(bins + r * kBins + digit, 1u);
      }
    }
  });
  __syncthreads();
  flush_counts(bins, rows * kBins, counts);
}

struct Ranks {
  Rank rank[kMaxRanks];
  int64_t den;
};

// Grid: one block of 1024 threads per rank, two bins a thread. Takes the digit of a level; after
// the last, the score is known. state is not __restrict__: all threads read what one then writes,
// and of memory that nobody else writes the compiler may move a read past the barrier between.
__global__ void __launch_bounds__(kPickThreads)
    pick_kernel(const uint32_t* __restrict__ counts, const __grid_constant__ Ranks ranks, int level,
                SelectState* state, float* __restrict__ out) {
  const int r = static_cast<int>(blockIdx.x);
  const uint32_t* row = counts + (level == 0 ? 0 : r * kBins) + 2 * threadIdx.x;
  const uint32_t count[2] = {row[0], row[1]};
  int64_t total;
  const int64_t before =
      exclusive_scan<kPickThreads>(static_cast<int64_t>(count[0]) + count[1], &total);
  if (total == 0) {  // nothing seen
    if (threadIdx.x == 0) {
      state->key[r] = kNoKey;
      state->rank[r] = state->ties[r] = 0;  // top looks at them before it looks at the key
      if (level == kLevels - 1 && out != nullptr) out[r] = nothing_selected();
    }
    return;
  }
  const int64_t rank = level == 0 ? rank_of(ranks.rank[r], ranks.den, total) : state->rank[r];
  __syncthreads();  // all have read the rank before the one that has the bin changes it
  Bin found;
  if (!find_bin(count, before, rank, &found)) return;
  const uint32_t higher = level == 0 ? 0 : state->key[r];
  const uint32_t key = higher | static_cast<uint32_t>(found.bin) << digit_shift<false>(level);
  state->key[r] = key;
  state->rank[r] = found.rank;
  state->ties[r] = found.count;
  if (level == kLevels - 1 && out != nullptr) out[r] = key_to_float(key);
}

template <typename Sample, bool kFirst>
cudaError_t take_digit(const SelectArgs& args, int level, cudaStream_t stream) {
  uint32_t* counts = args.counts + level * kMaxRanks * kBins;
  const auto* values = static_cast<const Sample*>(args.values);
  const unsigned grid = grid_of(args.num_samples, kSelectTile, kMaxGrid);
  if (grid > 0) {
    digit_kernel<Sample, kFirst><<<grid, kSelectThreads, 0, stream>>>(
        values, args.num_samples, select_vector(args), level, args.state, args.num_ranks, counts);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  Ranks ranks = {};
  for (int r = 0; r < args.num_ranks; ++r) ranks.rank[r] = args.rank[r];
  ranks.den = args.den;
  pick_kernel<<<static_cast<unsigned>(args.num_ranks), kPickThreads, 0, stream>>>(
      counts, ranks, level, args.state, args.out);
  return cudaGetLastError();
}

template <typename Sample>
cudaError_t take_digits(const SelectArgs& args, cudaStream_t stream) {
  cudaError_t error = take_digit<Sample, true>(args, 0, stream);
  for (int level = 1; level < kLevels && error == cudaSuccess; ++level) {
    error = take_digit<Sample, false>(args, level, stream);
  }
  return error;
}

}  // namespace

cudaError_t launch_digits(const SelectArgs& args, cudaStream_t stream) {
  return args.records ? take_digits<int64_t>(args, stream) : take_digits<float>(args, stream);
}

cudaError_t launch_select(const SelectArgs& args, cudaStream_t stream) {
  const MayLoad load;
  if (args.num_ranks == 0) return cudaSuccess;
  const cudaError_t error =
      cudaMemsetAsync(args.counts, 0, kSelectCounts * sizeof(uint32_t), stream);
  return error != cudaSuccess ? error : launch_digits(args, stream);
}

}  // namespace cuda
}  // namespace prune_engine
