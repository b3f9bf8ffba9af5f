// SPDX-License-Identifier: Apache-2.0
// cross_entropy_observe on a GPU: one launch. A warp has a row of up to 1024 classes, a block a
// longer one; each thread keeps the sums of its logits (softmax.h), which are merged in a fixed
// order, so the result does not depend on timing. One thread of the row then records as observe.cu.
#include <algorithm>

#include "launch.h"
#include "logits.cuh"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kWarpRow = 1024;   // longest row that one warp takes
constexpr int64_t kMaxGrid = 65536;  // longer batches: several rows per warp or block

template <typename Real>
__device__ __forceinline__ RowStats<Real> shuffled(const RowStats<Real>& row, int offset) {
  return {__shfl_down_sync(kAllLanes, row.largest, offset),
          __shfl_down_sync(kAllLanes, row.ties, offset),
          __shfl_down_sync(kAllLanes, row.rest, offset),
          __shfl_down_sync(kAllLanes, row.squares, offset),
          __shfl_down_sync(kAllLanes, row.spread, offset),
          __shfl_down_sync(kAllLanes, row.second, offset),
          __shfl_down_sync(kAllLanes, row.total, offset),
          __shfl_down_sync(kAllLanes, row.weights, offset)};
}

// Lane 0 gets the statistics of its warp. A merge is long, and few of them make a row: not
// unrolled, the kernels are a third of the size.
template <typename Real>
__device__ __forceinline__ RowStats<Real> warp_merged(RowStats<Real> row) {
#pragma unroll 1
  for (int offset = kWarp / 2; offset > 0; offset /= 2) row = merged(row, shuffled(row, offset));
  return row;
}

template <typename Logit, bool kFull>
__device__ __forceinline__ RowStats<typename Accumulator<Logit>::Type> scan(
    const Logit* row, const float* weights, int64_t count, int thread, int threads) {
  using Real = typename Accumulator<Logit>::Type;
  RowStats<Real> found = no_stats<Real>();
  for_each_logit(row, count, thread, threads, [&](int64_t c, Logit logit) {
    const Real weight = kFull && weights ? static_cast<Real>(weights[c]) : static_cast<Real>(1);
    add_logit<kFull>(&found, static_cast<Real>(widen(logit)), weight);
  });
  return found;
}

// What one thread does with a row that is scanned.
template <typename Logit, typename Real>
__device__ __forceinline__ void finish_row(const LogitBatch& batch, const State& state, int64_t b,
                                           const RowStats<Real>& found, int64_t epoch,
                                           Tally* tally) {
  const Labels& labels = batch.labels;
  const int64_t target = batch.targets[b];
  const int64_t index = batch.wide ? static_cast<const int64_t*>(batch.indices)[b]
                                   : static_cast<const int32_t*>(batch.indices)[b];
  const bool inside = static_cast<uint64_t>(index) < static_cast<uint64_t>(state.num_samples);
  Real loss = 0, largest = 0, factor = 0;
  float score = static_cast<float>(NAN);
  if (target != labels.ignore_index) {
    if (target < 0 || target >= labels.num_classes) {  // for all to see; a host would have raised
      loss = factor = static_cast<Real>(NAN);
    } else {
      const Smoothing<Real> smoothing = {static_cast<Real>(labels.smoothing), labels.num_classes};
      const auto* row = static_cast<const Logit*>(batch.logits) + b * labels.num_classes;
      const Real own = static_cast<Real>(widen(row[target]));
      const Real weight = labels.class_weight ? static_cast<Real>(labels.class_weight[target]) : 1;
      loss = row_loss(found, own, weight, smoothing);
      factor = row_factor(found, weight, smoothing);
      largest = found.largest;
      score = row_score(found, own, labels.kind, inside ? state.records[index] : 0, epoch);
    }
  }
  auto* stats = static_cast<Real*>(batch.stats) + 2 * b;
  stats[0] = largest;
  stats[1] = factor;
  batch.score[b] = score;
  float weight = 1.0f;
  if (inside) {
    weight = state.weight_table[state.weight_class[index] & (kNumClasses - 1)];
    record_score(state.records + index, score, epoch, tally);
  } else {
    record_outside(index, state.counters, tally);
  }
  batch.batch_weights[b] = weight;
  static_cast<Real*>(batch.rescaled)[b] = loss * static_cast<Real>(weight);
}

// Grid: one warp per row, kWarps rows a block.
template <typename Logit, bool kFull>
__global__ void __launch_bounds__(kThreads, 2)
    cross_entropy_warp_kernel(LogitBatch batch, State state) {
  const int64_t count = batch.labels.num_classes;
  const int64_t epoch = *state.epoch;
  Tally tally = {};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kWarps + warp_id(); b < batch.size;
       b += stride) {
    const auto* row = static_cast<const Logit*>(batch.logits) + b * count;
    const auto found =
        warp_merged(scan<Logit, kFull>(row, batch.labels.class_weight, count, lane_id(), kWarp));
    if (lane_id() == 0) finish_row<Logit>(batch, state, b, found, epoch, &tally);
  }
  add_tally<kThreads>(tally, state.score_sum, state.counters);
}

// Grid: one block per row.
template <typename Logit, bool kFull>
__global__ void __launch_bounds__(kThreads, 2)
    cross_entropy_block_kernel(LogitBatch batch, State state) {
  using Real = typename Accumulator<Logit>::Type;
  __shared__ RowStats<Real> parts[kWarps];
  const int64_t count = batch.labels.num_classes;
  const int64_t epoch = *state.epoch;
  const int thread = static_cast<int>(threadIdx.x);
  Tally tally = {};
  for (int64_t b = blockIdx.x; b < batch.size; b += gridDim.x) {
    const auto* row = static_cast<const Logit*>(batch.logits) + b * count;
    const auto part =
        warp_merged(scan<Logit, kFull>(row, batch.labels.class_weight, count, thread, kThreads));
    if (lane_id() == 0) parts[warp_id()] = part;
    __syncthreads();
    if (thread == 0) {
      RowStats<Real> found = parts[0];
#pragma unroll 1
      for (int warp = 1; warp < kWarps; ++warp) found = merged(found, parts[warp]);
      finish_row<Logit>(batch, state, b, found, epoch, &tally);
    }
    __syncthreads();  // before the next row's parts are written
  }
  add_tally<kThreads>(tally, state.score_sum, state.counters);
}

template <typename Logit, bool kFull>
void launch(const LogitBatch& batch, const State& state, cudaStream_t stream) {
  const bool by_warp = batch.labels.num_classes <= kWarpRow;
  const int64_t blocks = by_warp ? num_blocks(batch.size, kWarps) : batch.size;
  const auto grid = static_cast<unsigned>(std::min(kMaxGrid, blocks));
  if (by_warp) {
    cross_entropy_warp_kernel<Logit, kFull><<<grid, kThreads, 0, stream>>>(batch, state);
  } else {
    cross_entropy_block_kernel<Logit, kFull><<<grid, kThreads, 0, stream>>>(batch, state);
  }
}

template <typename Logit>
void launch_full(const LogitBatch& batch, const State& state, cudaStream_t stream) {
  if (needs_full(batch.labels.smoothing, batch.labels.kind)) {
    launch<Logit, true>(batch, state, stream);
  } else {
    launch<Logit, false>(batch, state, stream);
  }
}

}  // namespace

cudaError_t launch_cross_entropy_observe(const LogitBatch& batch, const State& state,
                                         cudaStream_t stream) {
  if (batch.size == 0) return cudaSuccess;  // Edge case 1
  switch (batch.logit_type) {
    case Real::kFloat:
      launch_full<float>(batch, state, stream);
      break;
    case Real::kDouble:
      launch_full<double>(batch, state, stream);
      break;
    case Real::kHalf:
      launch_full<__half>(batch, state, stream);
      break;
    case Real::kBFloat16:
      launch_full<__nv_bfloat16>(batch, state, stream);
      break;
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
