// SPDX-License-Identifier: Apache-2.0
// What the threads of a block have to add to the exact sum, in shared memory: a column for each
// thread that has something, so that no addition waits for another and none is atomic. Atomics of
// 64 bits in shared memory are loops that spin, and nine sums in registers would all be moved
// through every step of a reduction; a column is added to where a score's group says.
#pragma once

#include "../exact_sum.h"
#include "block.cuh"

namespace prune_engine {
namespace cuda {

// A row's entries are neighbours: threads of a warp meet in no bank.
template <int kRows, int kColumns>
struct SumColumns {
  long long at[kRows][kColumns];
};

// One thread's, which clears it before it adds to it.
template <int kRows, int kColumns>
class SumColumn {
 public:
  __device__ __forceinline__ SumColumn(SumColumns<kRows, kColumns>* all, int number)
      : first_(&all->at[0][number]) {}

  __device__ __forceinline__ void clear() const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) first_[row * kColumns] = 0;
  }

  __device__ __forceinline__ void add(int row, long long value) const {
    first_[row * kColumns] += value;
  }

  // What a score adds to the limbs, which are the first rows.
  __device__ __forceinline__ void add_score(uint32_t bits, bool minus) const {
    const Addend addend = addend_of_bits(bits);
    long long* limb = first_ + addend.group * kColumns;
    limb[0] += minus ? -addend.low : addend.low;
    limb[kColumns] += minus ? -addend.high : addend.high;
  }

 private:
  long long* first_;
};

// Calls give(row, sum) in one thread for each row's sum that is not zero. For all threads of a
// block, once.
template <int kThreads, int kRows, int kColumns, typename Give>
__device__ __forceinline__ void sum_columns(const SumColumns<kRows, kColumns>& all,
                                            const Give& give) {
  __syncthreads();
  if constexpr (kColumns < kWarp) {  // a few: a thread for each row
    const int row = static_cast<int>(threadIdx.x);
    if (row >= kRows) return;
    long long sum = 0;
#pragma unroll
    for (int column = 0; column < kColumns; ++column) sum += all.at[row][column];
    if (sum != 0) give(row, sum);
  } else {
    for (int row = warp_id(); row < kRows; row += kThreads / kWarp) {
      long long sum = 0;
#pragma unroll
      for (int k = 0; k < kColumns / kWarp; ++k) sum += all.at[row][kWarp * k + lane_id()];
#pragma unroll
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        sum += __shfl_down_sync(kAllLanes, sum, offset);
      }
      if (lane_id() == 0 && sum != 0) give(row, sum);
    }
  }
}

// Additions of integers commute (modulo 2^64), so the order of the blocks does not show.
__device__ __forceinline__ void add_to(int64_t* target, int64_t value) {
  if (value == 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(target), static_cast<unsigned long long>(value));
}

}  // namespace cuda
}  // namespace prune_engine
