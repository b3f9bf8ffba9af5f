// SPDX-License-Identifier: Apache-2.0
// The decision of one block of samples, shared by the operator and the NumPy module: draws, bands,
// weight classes (rule.h). The loops are written so that compilers vectorise them.
#pragma once

#include "../philox.h"
#include "../rule.h"
#include "dispatch.h"

namespace prune_engine {

constexpr int64_t kGroup = 8;  // samples per Philox call
constexpr int64_t kGroups = kPlanBlock / kGroup;

// Scratch of one block, about 48 KB: it stays in L2.
struct BlockScratch {
  uint32_t word[4][kGroups];
  uint16_t draw[kPlanBlock];
  uint32_t key[kPlanBlock];
  uint32_t fate[kPlanBlock];
};

// The 4096 draws of a block that starts at a multiple of 4096.
inline PE_CLONES void draw_block(int64_t begin, uint64_t seed, uint32_t epoch,
                                 BlockScratch* scratch) {
  const uint64_t first = static_cast<uint64_t>(begin) / kGroup;
  // A block of groups never crosses a multiple of 2^32, so the high word is constant.
  const auto high = static_cast<uint32_t>(first >> 32);
  const auto low = static_cast<uint32_t>(first);
  const auto k0 = static_cast<uint32_t>(seed);
  const auto k1 = static_cast<uint32_t>(seed >> 32);
  for (int32_t g = 0; g < kGroups; ++g) {
    const Philox4 words =
        philox4x32(low + static_cast<uint32_t>(g), high, kStreamKeep, epoch, k0, k1);
    scratch->word[0][g] = words.word[0];
    scratch->word[1][g] = words.word[1];
    scratch->word[2][g] = words.word[2];
    scratch->word[3][g] = words.word[3];
  }
  for (int32_t g = 0; g < kGroups; ++g) {
    for (int32_t w = 0; w < 4; ++w) {
      scratch->draw[8 * g + 2 * w] = static_cast<uint16_t>(scratch->word[w][g]);
      scratch->draw[8 * g + 2 * w + 1] = static_cast<uint16_t>(scratch->word[w][g] >> 16);
    }
  }
}

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
