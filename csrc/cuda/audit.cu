// SPDX-License-Identifier: Apache-2.0
// audit on a GPU: one read of the records recomputes the exact sum and compares what was seen with
// what was planned.
#include "columns.cuh"
#include "launch.h"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGrid = 2048;
constexpr int kPairs = 4;                         // 16-byte loads in flight per thread
constexpr int64_t kTile = 2 * kPairs * kThreads;  // samples per block and stride

// Seen; planned and seen; missing; extra. A thread meets fewer than 2^31 samples.
constexpr int kCounts = kAuditWords - kLimbs;

__device__ __forceinline__ void audit_sample(int64_t record, bool planned, int64_t epoch,
                                             const SumColumn<kLimbs, kThreads>& mine,
                                             int32_t (&counts)[kCounts]) {
  const bool seen = record != 0;
  const bool now = record_epoch(record) == epoch;
  if (seen) mine.add_score(bits_of_key(record_key(record)), false);
  counts[0] += seen ? 1 : 0;
  counts[1] += planned && now ? 1 : 0;
  counts[2] += planned && !now ? 1 : 0;
  counts[3] += !planned && now ? 1 : 0;
}

// For all threads of a block, once: one atomic a warp for each count that is not zero.
__device__ __forceinline__ void add_counts(const int32_t (&counts)[kCounts], int64_t* result) {
#pragma unroll
  for (int k = 0; k < kCounts; ++k) {
    int64_t sum = counts[k];
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      sum += __shfl_down_sync(kAllLanes, sum, offset);
    }
    if (lane_id() == 0) add_to(result + k, sum);
  }
}

// Grid: ceil(num_samples / 2048) blocks of 256 threads, at most kMaxGrid; per stride a thread takes
// four pairs of samples, neighbours in a warp taking neighbouring pairs. result is zero before.
__global__ void __launch_bounds__(kThreads)
    audit_kernel(const int64_t* __restrict__ records, const uint8_t* __restrict__ weight_class,
                 int64_t num_samples, bool vector, int64_t epoch, int64_t* result) {
  __shared__ SumColumns<kLimbs, kThreads> columns;
  const SumColumn<kLimbs, kThreads> mine(&columns, static_cast<int>(threadIdx.x));
  mine.clear();
  int32_t counts[kCounts] = {};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kTile;
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile; begin < num_samples;
       begin += stride) {
    if (vector && begin + kTile <= num_samples) {
      const auto* pairs = reinterpret_cast<const longlong2*>(records + begin);
      const auto* classes = reinterpret_cast<const uchar2*>(weight_class + begin);
      longlong2 pair[kPairs];
      uchar2 planned[kPairs];
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        pair[j] = pairs[j * kThreads + threadIdx.x];
        planned[j] = classes[j * kThreads + threadIdx.x];
      }
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        audit_sample(pair[j].x, planned[j].x != 0, epoch, mine, counts);
        audit_sample(pair[j].y, planned[j].y != 0, epoch, mine, counts);
      }
    } else {
      const int64_t end = begin + kTile < num_samples ? begin + kTile : num_samples;
      for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
        audit_sample(records[i], weight_class[i] != 0, epoch, mine, counts);
      }
    }
  }
  add_counts(counts, result + kLimbs);
  sum_columns<kThreads>(columns, [&](int row, long long sum) { add_to(result + row, sum); });
}

}  // namespace

cudaError_t launch_audit(const int64_t* records, const uint8_t* weight_class, int64_t num_samples,
                         int64_t epoch, int64_t* result, cudaStream_t stream) {
  const MayLoad load;
  const cudaError_t zeroed = cudaMemsetAsync(result, 0, kAuditWords * sizeof(int64_t), stream);
  if (zeroed != cudaSuccess || num_samples == 0) return zeroed;
  const bool vector = aligned(records, sizeof(longlong2)) && aligned(weight_class, sizeof(uchar2));
  const unsigned grid = grid_of(num_samples, kTile, kMaxGrid);
  audit_kernel<<<grid, kThreads, 0, stream>>>(records, weight_class, num_samples, vector, epoch,
                                              result);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
