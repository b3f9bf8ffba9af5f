// SPDX-License-Identifier: Apache-2.0
// The decision of one block of samples, shared by the operator and the NumPy module: draws, bands,
// weight classes (rule.h). The loops are written so that compilers vectorise them.
#pragma once

#include "../rule.h"
#include "dispatch.h"
#include "keep_draws.h"

namespace prune_engine {

// Scratch of one block, 40 KB: it stays in L2.
struct BlockScratch {
  uint16_t draw[kPlanBlock];
  uint32_t key[kPlanBlock];
  uint32_t fate[kPlanBlock];
};

inline PE_CLONES void key_block(const int64_t* records, int64_t size, BlockScratch* scratch) {
  for (int64_t i = 0; i < size; ++i) scratch->key[i] = sample_key(records[i]);
}

inline PE_CLONES void key_block(const float* scores, int64_t size, BlockScratch* scratch) {
  for (int64_t i = 0; i < size; ++i) scratch->key[i] = sample_key(scores[i]);
}

// weight_class of the block from scratch->fate and scratch->draw; returns how many are kept.
PE_HD int64_t apply_fates(int32_t count, const BlockScratch* scratch, uint8_t* weight_class) {
  const uint32_t* fate = scratch->fate;
  uint32_t kept = 0;
  for (int32_t i = 0; i < count; ++i) {
    const uint32_t decided = scratch->draw[i] < (fate[i] & 0xffffffu) ? 0 : fate[i] >> 24;
    weight_class[i] = static_cast<uint8_t>(decided);
    kept += decided != 0 ? 1 : 0;
  }
  return kept;
}

// weight_class of the block from scratch->key and scratch->draw; returns how many are kept.
// One select of a fate per threshold, in loops without branches, for scores and draws are as
// unpredictable as branches get.
inline PE_CLONES int64_t decide_block(const Decision& rule, int64_t size, BlockScratch* scratch,
                                      uint8_t* weight_class) {
  const auto count = static_cast<int32_t>(size);
  const uint32_t lowest = make_fate(rule.cut[0], rule.weight_class[0]);
  const uint32_t unseen = make_fate(rule.unseen_cut, rule.unseen_class);
  uint32_t* fate = scratch->fate;
  const uint32_t* key = scratch->key;
  for (int32_t i = 0; i < count; ++i) fate[i] = key[i] == kNoKey ? unseen : lowest;
  for (int t = 0; t < rule.num_thresholds; ++t) {
    const uint32_t threshold = rule.threshold_key[t];
    const uint32_t above = make_fate(rule.cut[t + 1], rule.weight_class[t + 1]);
    for (int32_t i = 0; i < count; ++i) fate[i] = key[i] >= threshold ? above : fate[i];
  }
  return apply_fates(count, scratch, weight_class);
}

}  // namespace prune_engine
