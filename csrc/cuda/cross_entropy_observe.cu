// SPDX-License-Identifier: Apache-2.0
// cross_entropy_observe on a GPU: one launch. A warp has a row of up to 1024 classes, a block a
// longer one; each thread keeps the sums of its logits (softmax.h), which are merged in a fixed
// order, so the result does not depend on timing. One thread of the row then records as observe
// does.
#include "logits.cuh"
#include "record.cuh"

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

// kLoads vectors of a row, step elements apart: all are in flight before the first is looked at.
template <bool kFull, int kLoads, typename Logit, typename Real>
__device__ __forceinline__ void add_vectors(const Logit* row, const float* weights, int64_t first,
                                            int64_t step, RowStats<Real>* found) {
  constexpr int kCount = Vector<Logit>::kCount;
  Vector<Logit> vector[kLoads];
  Real logit[kLoads * kCount], weight[kLoads * kCount];
#pragma unroll
  for (int v = 0; v < kLoads; ++v) vector[v] = load_vector(row + first + v * step);
#pragma unroll
  for (int k = 0; k < kLoads * kCount; ++k) {
    const int64_t c = first + k / kCount * step + k % kCount;
    logit[k] = static_cast<Real>(widen(vector[k / kCount].at[k % kCount]));
    weight[k] = kFull && weights ? static_cast<Real>(weights[c]) : static_cast<Real>(1);
  }
  add_logits<kFull>(found, logit, weight);
}

template <typename Logit, bool kFull>
__device__ __forceinline__ RowStats<typename Accumulator<Logit>::Type> scan(const LogitBatch& batch,
                                                                            int64_t b, int thread,
                                                                            int threads) {
  using Real = typename Accumulator<Logit>::Type;
  constexpr int kCount = Vector<Logit>::kCount;
  const int64_t count = batch.labels.num_classes;
  const float* weights = batch.labels.class_weight;
  RowStats<Real> found = no_stats<Real>();
  const auto* row = static_cast<const Logit*>(batch.logits) + b * count;
  const int64_t head = head_of(row, count);
  const int64_t past = head + (count - head) / kCount * kCount;  // the last whole vector's end
  const int64_t step = int64_t{kCount} * threads;
  int64_t at = head + int64_t{kCount} * thread;
  if (!kFull) {  // with all sums, two at once would be twice the code for a score that few ask for
#pragma unroll 1
    for (; at + step < past; at += 2 * step) add_vectors<kFull, 2>(row, weights, at, step, &found);
  }
#pragma unroll 1
  for (; at < past; at += step) add_vectors<kFull, 1>(row, weights, at, step, &found);
  // Both ends of a row are a few logits: unrolled, they would only be larger.
#pragma unroll 1
  for (int64_t i = thread; i < head + count - past; i += threads) {
    const int64_t c = i < head ? i : i - head + past;
    const Real weight = kFull && weights ? static_cast<Real>(weights[c]) : static_cast<Real>(1);
    add_logit<kFull>(&found, static_cast<Real>(widen(row[c])), weight);
  }
  return found;
}

// A branch that all threads take alike, outside of the loop over a row, instead of a kernel for
// each dtype: what follows the loop is far longer than it.
template <bool kFull>
__device__ __forceinline__ void read_row(const LogitBatch& batch, int64_t b, int thread,
                                         int threads, RowStats<float>* found) {
  switch (batch.logit_type) {
    case Real::kHalf:
      *found = scan<__half, kFull>(batch, b, thread, threads);
      break;
    case Real::kBFloat16:
      *found = scan<__nv_bfloat16, kFull>(batch, b, thread, threads);
      break;
    default:
      *found = scan<float, kFull>(batch, b, thread, threads);
      break;
  }
}

template <bool kFull>
__device__ __forceinline__ void read_row(const LogitBatch& batch, int64_t b, int thread,
                                         int threads, RowStats<double>* found) {
  *found = scan<double, kFull>(batch, b, thread, threads);
}

// What one thread does with a row that is scanned.
template <typename Wide>
__device__ __forceinline__ void finish_row(const LogitBatch& batch, const ScoreState& state,
                                           int64_t b, const RowStats<Wide>& found, int64_t epoch,
                                           const RecordColumn<kWarps>& mine) {
  const Labels& labels = batch.labels;
  const int64_t target = batch.targets[b];
  const int64_t index = batch.wide ? static_cast<const int64_t*>(batch.indices)[b]
                                   : static_cast<const int32_t*>(batch.indices)[b];
  const bool inside = static_cast<uint64_t>(index) < static_cast<uint64_t>(state.num_samples);
  Wide loss = 0, largest = 0, factor = 0;
  float score = static_cast<float>(NAN);
  bool saturated = false;
  if (target != labels.ignore_index) {
    if (target < 0 || target >= labels.num_classes) {  // for all to see; a host would have raised
      loss = factor = static_cast<Wide>(NAN);
    } else {
      const Smoothing<Wide> smoothing = {static_cast<Wide>(labels.smoothing), labels.num_classes};
      const Wide own =
          read_real<Wide>(batch.logits, batch.logit_type, b * labels.num_classes + target);
      const Wide weight = labels.class_weight ? static_cast<Wide>(labels.class_weight[target]) : 1;
      loss = row_loss(found, own, weight, smoothing);
      factor = row_factor(found, weight, smoothing);
      largest = found.largest;
      const Wide exact =
          row_score(found, own, labels.kind, inside ? state.records[index] : 0, epoch);
      score = static_cast<float>(exact);
      saturated = is_finite(exact) && !is_finite(score);
    }
  }
  auto* stats = static_cast<Wide*>(batch.stats) + 2 * b;
  stats[0] = largest;
  stats[1] = factor;
  batch.score[b] = score;
  float weight = 1.0f;
  if (inside) {
    weight = state.weight_table[state.weight_class[index]];
    record_score(state.records + index, score, saturated, epoch, state.counters, mine);
  } else {
    record_outside(index, state.counters, mine);
  }
  batch.batch_weights[b] = weight;
  static_cast<Wide*>(batch.rescaled)[b] = loss * static_cast<Wide>(weight);
}

// Grid: kThreads / threads rows a block; `threads` is kWarp or kThreads.
template <typename Wide, bool kFull>
__global__ void __launch_bounds__(kThreads, 2)
    cross_entropy_observe_kernel(LogitBatch batch, ScoreState state, bool advance, int threads) {
  __shared__ RowStats<Wide> parts[kWarps];
  __shared__ RecordColumns<kWarps> columns;
  const int64_t epoch = *state.epoch;
  const int rows = kThreads / threads;
  const int thread = static_cast<int>(threadIdx.x) % threads;
  const int own = static_cast<int>(threadIdx.x) / threads;
  // The first thread of a row records. Where a row takes a block there is one, and seven columns
  // stay as they are: zero.
  if (threadIdx.x < kWarps) RecordColumn<kWarps>(&columns, static_cast<int>(threadIdx.x)).clear();
  __syncthreads();
  const RecordColumn<kWarps> mine(&columns, own);
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * rows + own; b < batch.size;
       b += static_cast<int64_t>(gridDim.x) * rows) {
    RowStats<Wide> found;
    read_row<kFull>(batch, b, thread, threads, &found);
#pragma unroll 1
    for (int left = threads;; left /= kWarp) {  // once for a warp's row, twice for a block's
      found = warp_merged(found);
      if (left <= kWarp) break;
      if (lane_id() == 0) parts[warp_id()] = found;
      __syncthreads();
      found = lane_id() < kWarps ? parts[lane_id()] : no_stats<Wide>();
      __syncthreads();  // before the next row's parts are written
    }
    if (thread == 0) finish_row(batch, state, b, found, epoch, mine);
  }
  add_records<kThreads>(columns, advance, state);
}

template <typename Wide, bool kFull>
void launch(const LogitBatch& batch, const ScoreState& state, bool advance, cudaStream_t stream) {
  const int threads = batch.labels.num_classes <= kWarpRow ? kWarp : kThreads;
  // One block at least, for an empty batch may be a step.
  const unsigned grid = std::max(1u, grid_of(batch.size, kThreads / threads, kMaxGrid));
  const auto kernel = cross_entropy_observe_kernel<Wide, kFull>;
  kernel<<<grid, kThreads, 0, stream>>>(batch, state, advance, threads);
}

}  // namespace

cudaError_t launch_cross_entropy_observe(const LogitBatch& batch, const ScoreState& state,
                                         bool advance, cudaStream_t stream) {
  const MayLoad load;
  if (batch.size == 0 && !advance) return cudaSuccess;  // Edge case 1
  if (batch.logit_type == Real::kDouble) {  // all sums: for a dtype this rare no second kernel
    launch<double, true>(batch, state, advance, stream);
  } else if (needs_full(batch.labels.smoothing, batch.labels.kind)) {
    launch<float, true>(batch, state, advance, stream);
  } else {
    launch<float, false>(batch, state, advance, stream);
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
