// SPDX-License-Identifier: Apache-2.0
// observe on a GPU: one launch for a batch of any size. A 64-bit atomicMax per sample on its
// record, then the block's exact integer sums, then at most six atomics per block.
#include <algorithm>

#include "launch.h"
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

// Branches that all threads take alike, instead of a kernel for each three types.
__device__ __forceinline__ int64_t read_index(const void* indices, bool wide, int64_t b) {
  return wide ? static_cast<const int64_t*>(indices)[b] : static_cast<const int32_t*>(indices)[b];
}

__device__ __forceinline__ float read_score(const void* score, Real type, int64_t b) {
  switch (type) {
    case Real::kDouble:
      return to_float(static_cast<const double*>(score)[b]);
    case Real::kHalf:
      return to_float(static_cast<const __half*>(score)[b]);
    case Real::kBFloat16:
      return to_float(static_cast<const __nv_bfloat16*>(score)[b]);
    default:
      return static_cast<const float*>(score)[b];
  }
}

// Grid: ceil(size / 256) blocks of 256 threads, at most kMaxGrid; one sample per thread and stride.
template <typename Loss>
__global__ void __launch_bounds__(kThreads)
    observe_kernel(const Loss* __restrict__ losses, const void* __restrict__ indices, bool wide,
                   const void* __restrict__ score, Real score_type, int64_t size, int64_t* records,
                   int64_t num_samples, int64_t* score_sum, int64_t* counters,
                   const uint8_t* __restrict__ weight_class, const float* __restrict__ weight_table,
                   const int64_t* __restrict__ epoch, Loss* __restrict__ rescaled,
                   float* __restrict__ batch_weights) {
  const int64_t current = *epoch;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  Tally tally = {};
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < size;
       b += stride) {
    const int64_t index = read_index(indices, wide, b);
    const Loss loss = losses[b];
    // Edge case 3, index out of range: nothing is recorded, the loss passes, end_epoch raises.
    if (static_cast<uint64_t>(index) >= static_cast<uint64_t>(num_samples)) {
      rescaled[b] = loss;
      batch_weights[b] = 1.0f;
      record_outside(index, counters, &tally);
      continue;
    }
    const float weight = weight_table[weight_class[index] & (kNumClasses - 1)];
    batch_weights[b] = weight;
    rescaled[b] = rescale(loss, weight);
    record_score(records + index, read_score(score, score_type, b), current, &tally);
  }
  add_tally<kThreads>(tally, score_sum, counters);
}

template <typename Loss>
void launch(const LossBatch& batch, const ScoreState& state, cudaStream_t stream) {
  const auto grid =
      static_cast<unsigned>(std::min(kMaxGrid, num_blocks(batch.size, int64_t{kThreads})));
  observe_kernel<Loss><<<grid, kThreads, 0, stream>>>(
      static_cast<const Loss*>(batch.losses), batch.indices, batch.wide, batch.score,
      batch.score_type, batch.size, state.records, state.num_samples, state.score_sum,
      state.counters, state.weight_class, state.weight_table, state.epoch,
      static_cast<Loss*>(batch.rescaled), batch.batch_weights);
}

}  // namespace

cudaError_t launch_observe(const LossBatch& batch, const ScoreState& state, cudaStream_t stream) {
  if (batch.size == 0) return cudaSuccess;  // Edge case 1
  switch (batch.loss_type) {
    case Real::kFloat:
      launch<float>(batch, state, stream);
      break;
    case Real::kDouble:
      launch<double>(batch, state, stream);
      break;
    case Real::kHalf:
      launch<__half>(batch, state, stream);
      break;
    case Real::kBFloat16:
      launch<__nv_bfloat16>(batch, state, stream);
      break;
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
