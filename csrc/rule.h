// SPDX-License-Identifier: Apache-2.0
// A rule as the kernels of every device take it: bands of scores, each with the draws that drop a
// sample and the class that weighs it.
#pragma once

#include <vector>

#include "semantics.h"

namespace prune_engine {

// A rule as plain numbers. Band b of a seen sample is the number of thresholds <= its score.
struct Decision {
  int num_thresholds;
  uint32_t threshold_key[kMaxBands - 1];
  uint32_t cut[kMaxBands];  // 0..65536: a sample is dropped iff draw < cut
  uint8_t weight_class[kMaxBands];
  uint32_t unseen_cut;
  uint8_t unseen_class;
  bool draws;  // false where no cut can drop anybody: the generator is then not run
  uint64_t seed;
  uint32_t epoch;
  int64_t first;  // of a shard: the number in the data set of its first sample, whole plan blocks
};

// A rule of cuts.size() bands and one threshold fewer; unseen_band = -1 keeps samples without a
// score.
inline Decision make_decision(const float* thresholds, const std::vector<int64_t>& cuts,
                              const std::vector<int64_t>& classes, int64_t unseen_band,
                              int64_t seed, int64_t epoch, int64_t first = 0) {
  Decision rule = {};
  rule.num_thresholds = static_cast<int>(cuts.size()) - 1;
  for (int t = 0; t < rule.num_thresholds; ++t) {
    rule.threshold_key[t] = bits_to_key(float_bits(thresholds[t]));
  }
  for (int band = 0; band <= rule.num_thresholds; ++band) {
    rule.cut[band] = static_cast<uint32_t>(cuts[static_cast<size_t>(band)]);
    rule.weight_class[band] = static_cast<uint8_t>(classes[static_cast<size_t>(band)]);
    rule.draws |= rule.cut[band] != 0;
  }
  // Edge case 6: a sample without a score is kept with weight 1 unless the rule says otherwise.
  rule.unseen_cut = unseen_band < 0 ? 0 : rule.cut[unseen_band];
  rule.unseen_class = unseen_band < 0 ? 1 : rule.weight_class[unseen_band];
  rule.seed = static_cast<uint64_t>(seed);
  rule.epoch = static_cast<uint32_t>(epoch);
  rule.first = first;
  return rule;
}

// A sample's fate: its cut (low 24 bits) and its class (high 8).
PE_HD uint32_t make_fate(uint32_t cut, uint8_t weight_class) {
  return cut | static_cast<uint32_t>(weight_class) << 24;
}

// Samples of the plan block that begins at begin.
PE_HD int32_t block_size(int64_t begin, int64_t num_samples) {
  const int64_t left = num_samples - begin;
  return static_cast<int32_t>(left < kPlanBlock ? left : kPlanBlock);
}

}  // namespace prune_engine
