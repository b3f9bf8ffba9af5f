// SPDX-License-Identifier: Apache-2.0
// top on a GPU: select finds the smallest key that stays; where not all samples of that key do, the
// index of the last one is found in the same way, digit by digit; one more read writes the mask.
#include "select.cuh"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int64_t kMaxGrid = 528;
constexpr int kGroup = 4;  // neighbouring samples of a thread that writes the mask

// Grid: as digit_kernel. Counts a digit of the index of the samples that tie; returns at once where
// all of them stay.
template <typename Sample>
__global__ void __launch_bounds__(kSelectThreads)
    tie_kernel(const Sample* __restrict__ values, int64_t num_samples, bool vector, int level,
               const SelectState* __restrict__ state, uint32_t* __restrict__ counts) {
  __shared__ uint32_t bins[kBins];
  if (state->rank[0] == 0 || state->key[0] == kNoKey) return;
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSelectThreads) bins[i] = 0;
  // Of the index there is no digit yet at the first level, and nobody has written it.
  const uint32_t edge = state->key[0];
  const uint32_t above = level == 0 ? 0 : above_digit<true>(state->last_index, level);
  __syncthreads();
  visit_seen(values, num_samples, vector, [&](uint32_t index, uint32_t key) {
    if (key == edge && above_digit<true>(index, level) == above) {
      atomicAdd(bins + digit_of<true>(index, level), 1u);
    }
  });
  __syncthreads();
  flush_counts(bins, kBins, counts);
}

// One block of 1024 threads, two bins a thread: the next digit of the index of the last tie that
// stays. tie_rank is its rank among the ties that share the digits so far. state: see pick_kernel.
__global__ void __launch_bounds__(kPickThreads)
    last_kernel(const uint32_t* __restrict__ counts, int level, SelectState* state) {
  const int64_t rank = level == 0 ? state->ties[0] - state->rank[0] - 1 : state->tie_rank;
  if (state->rank[0] == 0) {
    if (threadIdx.x == 0) state->last_index = 0xffffffffu;
    return;
  }
  const uint32_t count[2] = {counts[2 * threadIdx.x], counts[2 * threadIdx.x + 1]};
  int64_t total;
  const int64_t before =  // synchronises: all have read the rank
      exclusive_scan<kPickThreads>(static_cast<int64_t>(count[0]) + count[1], &total);
  Bin found;
  if (!find_bin(count, before, rank, &found)) return;
  const uint32_t higher = level == 0 ? 0 : state->last_index;
  state->last_index = higher | static_cast<uint32_t>(found.bin) << digit_shift<true>(level);
  state->tie_rank = found.rank;
}

// Grid: one thread per four samples.
template <typename Sample>
__global__ void __launch_bounds__(kSelectThreads)
    mask_kernel(const Sample* __restrict__ values, int64_t num_samples, bool vector,
                const SelectState* __restrict__ state, uint8_t* __restrict__ mask) {
  const int64_t first =
      kGroup * (static_cast<int64_t>(blockIdx.x) * kSelectThreads + static_cast<int>(threadIdx.x));
  if (first >= num_samples) return;
  const uint32_t edge = state->key[0], last = state->last_index;
  uint32_t key[kGroup], word = 0;
  constexpr int kPer = 16 / static_cast<int>(sizeof(Sample));
  if (vector && first + kGroup <= num_samples) {
    const auto* from = reinterpret_cast<const uint4*>(values + first);
    uint4 load[kGroup / kPer];
#pragma unroll
    for (int l = 0; l < kGroup / kPer; ++l) load[l] = from[l];
#pragma unroll
    for (int e = 0; e < kGroup; ++e) key[e] = loaded_key(load[e / kPer], e % kPer, values);
  } else {
#pragma unroll
    for (int e = 0; e < kGroup; ++e) {
      key[e] = first + e < num_samples ? sample_key(values[first + e]) : kNoKey;
    }
  }
#pragma unroll
  for (int e = 0; e < kGroup; ++e) {
    const bool stays = key[e] != kNoKey && (key[e] > edge || (key[e] == edge && first + e <= last));
    word |= stays ? 1u << (8 * e) : 0u;
  }
  if (first + kGroup <= num_samples) {
    *reinterpret_cast<uint32_t*>(mask + first) = word;
    return;
  }
  for (int e = 0; first + e < num_samples; ++e) mask[first + e] = (word >> (8 * e)) & 1u;
}

template <typename Sample>
cudaError_t take_index(const SelectArgs& args, int level, cudaStream_t stream) {
  uint32_t* counts = args.counts + (kLevels * kMaxRanks + level) * kBins;
  const auto* values = static_cast<const Sample*>(args.values);
  const unsigned grid = grid_of(args.num_samples, kSelectTile, kMaxGrid);
  tie_kernel<Sample><<<grid, kSelectThreads, 0, stream>>>(
      values, args.num_samples, select_vector(args), level, args.state, counts);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  last_kernel<<<1, kPickThreads, 0, stream>>>(counts, level, args.state);
  return cudaGetLastError();
}

template <typename Sample>
cudaError_t mark(const SelectArgs& args, uint8_t* mask, cudaStream_t stream) {
  cudaError_t error = launch_digits(args, stream);
  for (int level = 0; level < kLevels && error == cudaSuccess; ++level) {
    error = take_index<Sample>(args, level, stream);
  }
  if (error != cudaSuccess) return error;
  const auto grid =
      static_cast<unsigned>(num_blocks(args.num_samples, int64_t{kGroup} * kSelectThreads));
  mask_kernel<Sample><<<grid, kSelectThreads, 0, stream>>>(static_cast<const Sample*>(args.values),
                                                           args.num_samples, select_vector(args),
                                                           args.state, mask);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_top(const SelectArgs& args, int64_t k, uint8_t* mask, cudaStream_t stream) {
  const MayLoad load;
  if (args.num_samples == 0) return cudaSuccess;  // Edge case 1
  if (k == 0) return cudaMemsetAsync(mask, 0, static_cast<size_t>(args.num_samples), stream);
  SelectArgs last = args;  // rank seen - k: the last, and the offset counts back from it
  last.num_ranks = 1;
  last.rank[0] = {1 - k, 1};
  last.den = 1;
  last.out = nullptr;
  const cudaError_t error =
      cudaMemsetAsync(args.counts, 0, kSelectCounts * sizeof(uint32_t), stream);
  if (error != cudaSuccess) return error;
  return args.records ? mark<int64_t>(last, mask, stream) : mark<float>(last, mask, stream);
}

}  // namespace cuda
}  // namespace prune_engine
