// SPDX-License-Identifier: Apache-2.0
// The kernel of observe and observe_mean: one launch for a batch of any size. A 64-bit atomicMax
// per sample on its record, then the block's exact integer sums, then an atomic for each of these
// that is not 0.
#pragma once

#include <type_traits>

#include "block.cuh"
#include "real.cuh"
#include "record.cuh"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGrid = 2048;  // larger batches: several samples per thread

// float32(loss) * weight in one rounding, then one more to the dtype; double stays double.
__device__ __forceinline__ float rescale(float loss, float weight) {
  return __fmul_rn(loss, weight);
}
__device__ __forceinline__ double rescale(double loss, float weight) {
  return __dmul_rn(loss, static_cast<double>(weight));
}
__device__ __forceinline__ __half rescale(__half loss, float weight) {
  return __float2half_rn(__fmul_rn(__half2float(loss), weight));
}
__device__ __forceinline__ __nv_bfloat16 rescale(__nv_bfloat16 loss, float weight) {
  return __float2bfloat16_rn(__fmul_rn(__bfloat162float(loss), weight));
}

// A branch that all threads take alike, as in read_real.
__device__ __forceinline__ int64_t read_index(const void* indices, bool wide, int64_t b) {
  return wide ? static_cast<const int64_t*>(indices)[b] : static_cast<const int32_t*>(indices)[b];
}

// What a weight multiplies: the loss, or the same part of a mean for all.
template <typename Loss, bool kShares>
__device__ __forceinline__ Loss own(const Loss* losses, int64_t b, float part) {
  if constexpr (kShares) {
    return part;
  } else {
    return losses[b];
  }
}

// Whether the score is finite before it is rounded to float32: of the dtypes only double is wider.
__device__ __forceinline__ bool is_finite_double(const void* score, Real type, int64_t b) {
  return type == Real::kDouble && is_finite(static_cast<const double*>(score)[b]);
}

// Grid: ceil(size / 256) blocks of 256 threads, at most kMaxGrid; one sample per thread and stride.
// Shares: each loss is `part`, and weights are not written.
template <typename Loss, bool kShares>
__global__ void __launch_bounds__(kThreads)
    observe_kernel(const Loss* __restrict__ losses, const void* __restrict__ indices, bool wide,
                   const void* __restrict__ score, Real score_type, int64_t size, ScoreState state,
                   bool advance, float part, Loss* __restrict__ rescaled,
                   float* __restrict__ batch_weights) {
  __shared__ RecordColumns<kThreads> columns;
  const RecordColumn<kThreads> mine(&columns, static_cast<int>(threadIdx.x));
  mine.clear();
  // Read beside the indices, so that index, class and weight end in shared memory and not in L2.
  __shared__ float table[kNumClasses];
  static_assert(kThreads == kNumClasses, "an entry a thread");
  table[threadIdx.x] = __ldg(state.weight_table + threadIdx.x);
  __syncthreads();
  const int64_t current = *state.epoch;
  for_each_own<kThreads>(size, [&](int64_t b) {
    const int64_t index = read_index(indices, wide, b);
    const Loss loss = own<Loss, kShares>(losses, b, part);
    // Edge case 3, index out of range: nothing is recorded, the loss passes, end_epoch raises.
    if (static_cast<uint64_t>(index) >= static_cast<uint64_t>(state.num_samples)) {
      rescaled[b] = loss;
      if constexpr (!kShares) batch_weights[b] = 1.0f;
      record_outside(index, state.counters, mine);
      return;
    }
    const float weight = table[__ldg(state.weight_class + index)];
    if constexpr (!kShares) batch_weights[b] = weight;
    rescaled[b] = rescale(loss, weight);
    const float scored = read_real<float>(score, score_type, b);
    const bool saturated = !is_finite(scored) && is_finite_double(score, score_type, b);
    record_score(state.records + index, scored, saturated, current, state.counters, mine);
  });
  add_records<kThreads>(columns, advance, state);
}

template <typename Loss, bool kShares>
void launch_kernel(const LossBatch& batch, const ScoreState& state, bool advance,
                   cudaStream_t stream) {
  // One block at least, for an empty batch may be a step.
  const unsigned grid = std::max(1u, grid_of(batch.size, kThreads, kMaxGrid));
  const auto part = static_cast<float>(1.0 / static_cast<double>(std::max<int64_t>(1, batch.size)));
  observe_kernel<Loss, kShares><<<grid, kThreads, 0, stream>>>(
      static_cast<const Loss*>(batch.losses), batch.indices, batch.wide, batch.score,
      batch.score_type, batch.size, state, advance, part, static_cast<Loss*>(batch.rescaled),
      batch.batch_weights);
}

}  // namespace
}  // namespace cuda
}  // namespace prune_engine
