// SPDX-License-Identifier: Apache-2.0
// solve_levels on a GPU: one block finds the threshold by bisection; nothing leaves the device.
#include "../levels.h"
#include "block.cuh"
#include "launch.h"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kEach = kCells / kThreads;
// Below these octaves under the threshold no draw keeps a cell but the fewest.
constexpr int64_t kOctaves = 18;
static_assert(16 * (kOctaves + 1) <= kThreads, "a cell per thread");

// 65536 times the number of samples kept on average, in every thread. above[bin]: samples of the
// bin and of higher ones.
__device__ __forceinline__ int64_t expected_of(const int64_t* above, int64_t unseen, int64_t theta,
                                               int64_t least) {
  const int64_t octave = theta >> 23;
  const int64_t over = first_top(theta) + 16 - kFirstCell;  // the first bin that is kept whole
  const int64_t end = over < kScoreCells ? over : kScoreCells;
  const int64_t low = 4096 + 16 * (octave - kOctaves) - kFirstCell;
  const int64_t begin = low < 0 ? 0 : low < end ? low : end;
  const int64_t bin = begin + threadIdx.x;
  int64_t part = 0;
  if (bin < end) part = (above[bin] - above[bin + 1]) * keep_of(theta, kFirstCell + bin, least);
  int64_t sum;
  exclusive_scan<kThreads>(part, &sum);
  return sum + kDraws * (unseen + above[end]) + least * (above[0] - above[begin]);
}

// Suffix sums of the bins of scores, for all threads.
__device__ __forceinline__ void sum_above(const int64_t* __restrict__ counts, int64_t* above) {
  int64_t mine = 0, total;
  for (int k = 0; k < kEach; ++k) {
    const int bin = kCells - 1 - (static_cast<int>(threadIdx.x) * kEach + k);
    mine += bin < kScoreCells ? counts[bin] : 0;
  }
  int64_t before = exclusive_scan<kThreads>(mine, &total);
  for (int k = 0; k < kEach; ++k) {
    const int bin = kCells - 1 - (static_cast<int>(threadIdx.x) * kEach + k);
    before += bin < kScoreCells ? counts[bin] : 0;
    above[bin] = before;
  }
  if (threadIdx.x == 0) above[kCells] = 0;
  __syncthreads();
}

// Grid: one block of 512 threads, alone on its processor: told nothing, ptxas saves registers.
__global__ void __launch_bounds__(kThreads, 1)
    solve_levels_kernel(const int64_t* __restrict__ counts, int64_t target, int64_t least,
                        int32_t* __restrict__ top_out, int32_t* __restrict__ cut,
                        float* __restrict__ weight_table, int64_t* __restrict__ solution) {
  __shared__ int64_t above[kCells + 1];
  __shared__ int64_t top;
  const int me = static_cast<int>(threadIdx.x);
  sum_above(counts, above);
  const int64_t unseen = counts[kUnseenCell];
  int64_t low = kLowestTheta, high = kHighestTheta;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (expected_of(above, unseen, middle, least) <= kDraws * target) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const int64_t expected = expected_of(above, unseen, low, least);
  if (me <= 16 && is_top(low, first_top(low) + me)) top = first_top(low) + me;  // one thread's
  __syncthreads();
  if (me == 0) {
    *top_out = static_cast<int32_t>(top);
    solution[0] = low;
    solution[1] = expected;
  }
  if (me < kNumClasses) {
    const int64_t keep = level_keep(low, top, me, least);
    cut[me] = static_cast<int32_t>(kDraws - keep);
    weight_table[me] = level_weight(keep);
  }
}

}  // namespace

cudaError_t launch_solve_levels(const int64_t* counts, int64_t target, int64_t least,
                                const LevelTables& levels, cudaStream_t stream) {
  const MayLoad load;
  solve_levels_kernel<<<1, kThreads, 0, stream>>>(counts, target, least, levels.top, levels.cut,
                                                  levels.weight_table, levels.solution);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
