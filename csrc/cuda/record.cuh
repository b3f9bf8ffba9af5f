// SPDX-License-Identifier: Apache-2.0
// How a score gets into its record on a GPU, for every kernel that has one: a 64-bit atomicMax, and
// what it adds to the exact sums.
#pragma once

#include "block.cuh"

namespace prune_engine {
namespace cuda {

// What a thread has to add to score_sum and counters. A thread meets fewer than 2^31 samples.
struct Tally {
  int64_t high, low;
  int32_t seen, observed, nonfinite, outside;
};

// Edge case 3, index out of range: nothing is recorded and end_epoch raises.
__device__ __forceinline__ void record_outside(int64_t index, int64_t* counters, Tally* tally) {
  tally->outside += 1;
  atomicMin(reinterpret_cast<long long*>(counters + 3), static_cast<long long>(index));
}

__device__ __forceinline__ void record_score(int64_t* record, float score, int64_t epoch,
                                             Tally* tally) {
  tally->observed += 1;
  const uint32_t bits = float_bits(score);
  if (!is_finite_bits(bits)) {  // Edge case 2: the last finite score decides
    tally->nonfinite += 1;
    return;
  }
  // Edge case 4, the same sample twice: each winner adds its difference to what it replaced, so
  // the sum telescopes whatever the order.
  const int64_t fresh = make_record(epoch, bits_to_key(bits));
  const int64_t old =
      atomicMax(reinterpret_cast<long long*>(record), static_cast<long long>(fresh));
  if (fresh <= old) return;
  const int64_t code = bits_to_code(bits);
  tally->high += code_high(code);
  tally->low += code_low(code);
  if (old == 0) {
    tally->seen += 1;
  } else {
    const int64_t old_code = score_code(key_to_float(record_key(old)));
    tally->high -= code_high(old_code);
    tally->low -= code_low(old_code);
  }
}

// For all threads of a block, once.
template <int kThreads>
__device__ __forceinline__ void add_tally(const Tally& tally, int64_t* score_sum,
                                          int64_t* counters) {
  const int64_t sums[6] = {tally.high,     tally.low,       tally.seen,
                           tally.observed, tally.nonfinite, tally.outside};
  add_block<kThreads>(sums, score_sum, counters);
}

}  // namespace cuda
}  // namespace prune_engine
