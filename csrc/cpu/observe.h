// SPDX-License-Identifier: Apache-2.0
// How a batch of scores gets into the records on the CPU, for every operator that has one.
#pragma once

#include <cstddef>
#include <type_traits>

#include "dtypes.h"

namespace prune_engine {

constexpr int64_t kPrefetch = 16;  // records are scattered over N; hide that many cache misses

template <typename Loss, typename Index, typename Score>
struct ScoredBatch {
  const Loss* losses;
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

template <typename Loss, typename Index, typename Score>
void observe_batch(const ScoredBatch<Loss, Index, Score>& batch, const ScoreState& state,
                   Loss* rescaled, float* batch_weights) {
  const Index* indices = batch.indices;
  const int64_t epoch = *state.epoch;
  check_range(indices, batch.size, state.num_samples);
  Limbs added = {0, 0, 0};
  int64_t nonfinite = 0;
  for (int64_t b = 0; b < batch.size; ++b) {
    if (b + kPrefetch < batch.size) {
      const auto ahead = static_cast<ptrdiff_t>(indices[b + kPrefetch]);
      __builtin_prefetch(state.records + ahead, 1);
      __builtin_prefetch(state.weight_class + ahead, 0);
    }
    const auto index = static_cast<ptrdiff_t>(indices[b]);
    const float weight = state.weight_table[state.weight_class[index] & (kNumClasses - 1)];
    batch_weights[b] = weight;
    rescaled[b] = rescale<Loss>(batch.losses[b], weight);
    const float score = static_cast<float>(batch.scores[b]);
    const uint32_t bits = float_bits(score);
    if (!is_finite_bits(bits)) {  // Edge case 2: the last finite score decides
      ++nonfinite;
      continue;
    }
    // Edge case 4, the same sample twice: a max-register does not mind the order.
    const int64_t fresh = make_record(epoch, bits_to_key(bits));
    const int64_t old = state.records[index];
    if (fresh <= old) continue;
    state.records[index] = fresh;
    const int64_t code = score_code(score);
    added.high += code_high(code);
    added.low += code_low(code);
    if (old == 0) {
      added.seen += 1;
    } else {
      const int64_t old_code = score_code(key_to_float(record_key(old)));
      added.high -= code_high(old_code);
      added.low -= code_low(old_code);
    }
  }
  state.score_sum[0] += added.high;
  state.score_sum[1] += added.low;
  state.score_sum[2] += added.seen;
  state.counters[0] += batch.size;
  state.counters[1] += nonfinite;
}

}  // namespace prune_engine
