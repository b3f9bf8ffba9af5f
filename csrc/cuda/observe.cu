// SPDX-License-Identifier: Apache-2.0
// observe on a GPU: one launch for a batch of any size. A 64-bit atomicMax per sample on its
// record, then the block's exact integer sums, then at most six atomics per block.
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
  Tally tally = {};
  for_each_own<kThreads>(size, [&](int64_t b) {
    const int64_t index = read_index(indices, wide, b);
    const Loss loss = losses[b];
    // Edge case 3, index out of range: nothing is recorded, the loss passes, end_epoch raises.
    if (static_cast<uint64_t>(index) >= static_cast<uint64_t>(num_samples)) {
      rescaled[b] = loss;
      batch_weights[b] = 1.0f;
      record_outside(index, counters, &tally);
      return;
    }
    const float weight = weight_table[weight_class[index] & (kNumClasses - 1)];
    batch_weights[b] = weight;
    rescaled[b] = rescale(loss, weight);
    record_score(records + index, read_real<float>(score, score_type, b), current, &tally);
  });
  add_tally<kThreads>(tally, score_sum, counters);
}

template <typename Loss>
void launch(const LossBatch& batch, const ScoreState& state, cudaStream_t stream) {
  const unsigned grid = grid_of(batch.size, kThreads, kMaxGrid);
  observe_kernel<Loss><<<grid, kThreads, 0, stream>>>(
      static_cast<const Loss*>(batch.losses), batch.indices, batch.wide, batch.score,
      batch.score_type, batch.size, state.records, state.num_samples, state.score_sum,
      state.counters, state.weight_class, state.weight_table, state.epoch,
      static_cast<Loss*>(batch.rescaled), batch.batch_weights);
}

}  // namespace

cudaError_t launch_observe(const LossBatch& batch, const ScoreState& state, cudaStream_t stream) {
  if (batch.size == 0) return cudaSuccess;  // Edge case 1
  return launch_for(batch.loss_type, [&](auto* loss) {
    launch<std::remove_pointer_t<decltype(loss)>>(batch, state, stream);
  });
}

}  // namespace cuda
}  // namespace prune_engine
