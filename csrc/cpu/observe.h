// SPDX-License-Identifier: Apache-2.0
// How a batch of scores gets into the records on the CPU, for every operator that has one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>

#include "dtypes.h"

namespace prune_engine {

// Records are scattered over N: hide that many cache misses. Into the second level, which can wait
// for many more lines than the first (measured on Zen 4, 256 samples out of the caches: 3.3 us, by
// prefetches into the first level 6.6 at its best distance).
constexpr int64_t kPrefetch = 48;

template <typename Index, typename Score>
struct ScoredBatch {
  const Index* indices;
  const Score* scores;
  int64_t size;
};

// Edge case 3, index out of range: refused before anything is written.
template <typename Index>
void check_range(const Index* indices, int64_t size, int64_t num_samples) {
  uint64_t bad = 0;
  for (int64_t b = 0; b < size; ++b) {
    bad |= static_cast<uint64_t>(static_cast<uint64_t>(static_cast<int64_t>(indices[b])) >=
                                 static_cast<uint64_t>(num_samples));
  }
  if (bad == 0) return;
  for (int64_t b = 0; b < size; ++b) {
    const int64_t index = static_cast<int64_t>(indices[b]);
    STD_TORCH_CHECK(index >= 0 && index < num_samples, "IndexError: indices must be in 0..",
                    num_samples - 1, ", got ", index, " at position ", b);
  }
}

// float32(loss) * weight in one rounding, then one more to the dtype; double stays double.
template <typename Loss>
Loss rescale(Loss loss, float weight) {
  return static_cast<Loss>(static_cast<float>(loss) * weight);
}
template <>
inline double rescale<double>(double loss, float weight) {
  return loss * static_cast<double>(weight);
}

// Whether rounding to float32 made a score infinite: of the dtypes only double reaches beyond.
inline bool saturates(double score) { return std::isfinite(score); }
template <typename Score>
bool saturates(Score) {
  return false;
}

inline void add_score(uint32_t bits, int64_t sign, int64_t* added) {
  const Addend addend = addend_of_bits(bits);
  added[addend.group] += sign * addend.low;
  added[addend.group + 1] += sign * addend.high;
}

template <typename Index>
void prefetch_sample(const ScoreState& state, Index index) {
  const auto at = static_cast<ptrdiff_t>(index);
  __builtin_prefetch(state.records + at, 0, 2);
  __builtin_prefetch(state.weight_class + at, 0, 2);
}

// Of the batch's first samples, before anything else is done. Indices may be out of range here.
template <typename Index>
void prefetch_first(const ScoreState& state, const Index* indices, int64_t size) {
  for (int64_t b = 0; b < std::min(kPrefetch, size); ++b) prefetch_sample(state, indices[b]);
}

// weigh(b, weight) is told what each sample of the batch weighs.
template <typename Index, typename Score, typename Weigh>
void observe_batch(const ScoredBatch<Index, Score>& batch, const ScoreState& state, bool advance,
                   const Weigh& weigh) {
  const Index* indices = batch.indices;
  const int64_t epoch = *state.epoch;
  check_range(indices, batch.size, state.num_samples);
  int64_t added[kSumWords] = {};
  int64_t nonfinite = 0, saturated = 0;
  for (int64_t b = 0; b < batch.size; ++b) {
    if (b + kPrefetch < batch.size) prefetch_sample(state, indices[b + kPrefetch]);
    const auto index = static_cast<ptrdiff_t>(indices[b]);
    weigh(b, state.weight_table[state.weight_class[index]]);
    const uint32_t bits = float_bits(static_cast<float>(batch.scores[b]));
    if (!is_finite_bits(bits)) {  // Edge case 2: the last finite score decides
      ++nonfinite;
      saturated += saturates(batch.scores[b]) ? 1 : 0;
      continue;
    }
    // Edge case 4, the same sample twice: a max-register does not mind the order.
    const int64_t fresh = make_record(epoch, bits_to_key(bits));
    const int64_t old = state.records[index];
    if (fresh <= old) continue;
    state.records[index] = fresh;
    add_score(bits, 1, added);
    if (old == 0) {
      added[kLimbs] += 1;
    } else {
      add_score(bits_of_key(record_key(old)), -1, added);
    }
  }
  for (int k = 0; k < kSumWords; ++k) state.score_sum[k] += added[k];
  state.counters[kObserved] += batch.size;
  state.counters[kNonfinite] += nonfinite;
  state.counters[kSaturated] += saturated;
  *state.step += advance ? 1 : 0;
}

}  // namespace prune_engine
