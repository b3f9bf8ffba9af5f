// SPDX-License-Identifier: Apache-2.0
// What the operators that see a batch change, on any device.
#pragma once

#include <cstdint>

namespace prune_engine {

// counters: of the batches of an epoch.
enum Counter : int { kObserved, kNonfinite, kOutside, kBadIndex, kSaturated, kNumCounters };

struct ScoreState {
  int64_t* records;  // [num_samples]
  int64_t num_samples;
  int64_t* score_sum;           // [10]
  int64_t* counters;            // [5]
  int64_t* step;                // [1]
  const uint8_t* weight_class;  // [num_samples]
  const float* weight_table;    // [256]
  const int64_t* epoch;         // [1]
};

}  // namespace prune_engine
