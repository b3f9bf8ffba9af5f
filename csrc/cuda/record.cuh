// SPDX-License-Identifier: Apache-2.0
// How a score gets into its record on a GPU, for every kernel that has one: a 64-bit atomicMax, and
// what it adds to the exact sums.
#pragma once

#include "../score_state.h"
#include "columns.cuh"

namespace prune_engine {
namespace cuda {

// The limbs; then two rows of two counts, for a thread meets fewer than 2^31 samples.
constexpr int kSeenObserved = kLimbs;
constexpr int kNonfiniteOutside = kLimbs + 1;
constexpr int kRecordRows = kLimbs + 2;
constexpr long long kSecondCount = 1ll << 32;

template <int kColumns>
using RecordColumns = SumColumns<kRecordRows, kColumns>;

template <int kColumns>
using RecordColumn = SumColumn<kRecordRows, kColumns>;

// Edge case 3, index out of range: nothing is recorded and end_epoch raises.
template <int kColumns>
__device__ __forceinline__ void record_outside(int64_t index, int64_t* counters,
                                               const RecordColumn<kColumns>& mine) {
  mine.add(kNonfiniteOutside, kSecondCount);
  atomicMin(reinterpret_cast<long long*>(counters + kBadIndex), static_cast<long long>(index));
}

// saturated: the score was finite until it was rounded to float32.
template <int kColumns>
__device__ __forceinline__ void record_score(int64_t* record, float score, bool saturated,
                                             int64_t epoch, int64_t* counters,
                                             const RecordColumn<kColumns>& mine) {
  const uint32_t bits = float_bits(score);
  if (!is_finite_bits(bits)) {  // Edge case 2: the last finite score decides
    mine.add(kSeenObserved, kSecondCount);
    mine.add(kNonfiniteOutside, 1);
    if (saturated) add_to(counters + kSaturated, 1);
    return;
  }
  // Edge case 4, the same sample twice: each winner takes away what it replaced had added, so the
  // sum telescopes whatever the order.
  const int64_t fresh = make_record(epoch, bits_to_key(bits));
  const int64_t old =
      atomicMax(reinterpret_cast<long long*>(record), static_cast<long long>(fresh));
  mine.add(kSeenObserved, kSecondCount + (old == 0 ? 1 : 0));
  if (fresh <= old) return;
  mine.add_score(bits, false);
  if (old != 0) mine.add_score(bits_of_key(record_key(old)), true);
}

// For all threads of a block, once; the first thread of the first block moves the step on.
template <int kThreads, int kColumns>
__device__ __forceinline__ void add_records(const RecordColumns<kColumns>& all, bool advance,
                                            const ScoreState& state) {
  if (advance && blockIdx.x == 0 && threadIdx.x == 0) *state.step += 1;
  sum_columns<kThreads>(all, [&](int row, long long sum) {
    if (row < kLimbs) return add_to(state.score_sum + row, sum);
    const bool first = row == kSeenObserved;
    add_to(first ? state.score_sum + kLimbs : state.counters + kNonfinite, sum & 0xffffffffll);
    add_to(state.counters + (first ? kObserved : kOutside), sum >> 32);
  });
}

}  // namespace cuda
}  // namespace prune_engine
