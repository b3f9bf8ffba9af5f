// SPDX-License-Identifier: Apache-2.0
// What a selection means, shared by every compiled backend: the rank asked for. However a backend
// gets there, the answer is the same bits.
#pragma once

#include "semantics.h"

namespace prune_engine {

constexpr int kMaxRanks = 5;  // ranks of one call: the thresholds of a rule
constexpr int kBins = 2048;   // counts of one pass and rank

// Rank ceil((seen - 1) * num / den) + offset, counted from 0 and kept within the seen.
struct Rank {
  int64_t offset;
  int64_t num;  // 0..den
};

PE_HD int64_t rank_of(Rank rank, int64_t den, int64_t seen) {
  const int64_t at = ((seen - 1) * rank.num + den - 1) / den + rank.offset;
  const int64_t last = seen - 1;
  return at < 0 ? 0 : (at > last ? last : at);
}

// Nothing seen: no finite score lies below -FLT_MAX (edge case 6).
PE_HD float nothing_selected() { return key_to_float(kLowestFiniteKey); }

}  // namespace prune_engine
