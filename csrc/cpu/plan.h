// SPDX-License-Identifier: Apache-2.0
// The plan over any source of scores and any way of running blocks in parallel: plan.cpp gives it
// records and torch's threads, host.cpp NumPy scores and its own. Fixed counts take a histogram of
// the draws first.
//
// Sample is what key_block reads: int64_t (a record) or float (a score, nan = never seen).
// Parallel is called as parallel(begin, end, grain, body) and calls body(first, last) on pieces
// that cover [begin, end).
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "decide.h"

namespace prune_engine {

constexpr int64_t kGrain = 16;  // blocks per task

// The band whose draw the sample competes in, or -1 where it does not compete.
inline int band_of(const Decision& rule, uint32_t key, int unseen_band) {
  if (key == kNoKey) return unseen_band;
  int band = 0;
  for (int t = 0; t < rule.num_thresholds; ++t) band += key >= rule.threshold_key[t] ? 1 : 0;
  return band;
}

// How many samples of each band have each draw.
template <typename Sample, typename Parallel>
std::vector<int64_t> count_draws(const Sample* samples, int64_t num_samples, const Decision& rule,
                                 int unseen_band, const Parallel& parallel) {
  const int bands = rule.num_thresholds + 1;
  std::vector<int64_t> total(static_cast<size_t>(bands * kDraws), 0);
  std::mutex guard;
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  parallel(0, blocks, kGrain, [&](int64_t first, int64_t last) {
    std::vector<int32_t> part(static_cast<size_t>(bands * kDraws), 0);
    std::vector<BlockScratch> scratch(1);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kPlanBlock;
      const int64_t size = block_size(begin, num_samples);
      draw_block(rule.first + begin, rule.seed, rule.epoch, scratch[0].draw);
      key_block(samples + begin, size, scratch.data());
      for (int64_t i = 0; i < size; ++i) {
        const int band = band_of(rule, scratch[0].key[i], unseen_band);
        if (band >= 0) ++part[static_cast<size_t>(band * kDraws + scratch[0].draw[i])];
      }
    }
    const std::lock_guard<std::mutex> lock(guard);
    for (size_t k = 0; k < part.size(); ++k) total[k] += part[k];
  });
  return total;
}

// Fixed counts: of a band's n samples floor(n * num / den) stay, those with the largest draws.
// cut becomes the smallest draw that can stay; quota says how many of those with exactly that
// draw do (the first ones).
struct Quota {
  int64_t ties[kMaxBands];
};

inline Quota fix_counts(const std::vector<int64_t>& histogram, const std::vector<int64_t>& keep_num,
                        int64_t keep_den, int unseen_band, Decision* rule) {
  Quota quota = {};
  for (int band = 0; band <= rule->num_thresholds; ++band) {
    const int64_t* count = histogram.data() + band * kDraws;
    int64_t members = 0;
    for (int64_t draw = 0; draw < kDraws; ++draw) members += count[draw];
    const int64_t keep = members * keep_num[static_cast<size_t>(band)] / keep_den;
    int64_t cut = kDraws, at_least = 0;  // at_least = members whose draw >= cut
    while (at_least < keep) at_least += count[--cut];
    rule->cut[band] = static_cast<uint32_t>(cut);
    quota.ties[band] = cut < kDraws ? keep - (at_least - count[cut]) : 0;
  }
  if (unseen_band >= 0) rule->unseen_cut = rule->cut[unseen_band];
  return quota;
}

struct Tie {
  int64_t index;
  int band;
};

inline void collect_ties(const Decision& rule, int unseen_band, int64_t begin, int64_t size,
                         const BlockScratch& scratch, std::vector<Tie>* ties) {
  for (int64_t i = 0; i < size; ++i) {
    const int band = band_of(rule, scratch.key[i], unseen_band);
    if (band >= 0 && scratch.draw[i] == rule.cut[band]) ties->push_back({begin + i, band});
  }
}

// Ties beyond the quota, the larger indices, are dropped after all.
inline void settle_ties(std::vector<Tie> ties, Quota quota, uint8_t* weight_class,
                        int64_t* counts) {
  std::sort(ties.begin(), ties.end(), [](const Tie& a, const Tie& b) { return a.index < b.index; });
  for (const Tie& tie : ties) {
    if (quota.ties[tie.band]-- > 0) continue;
    weight_class[tie.index] = 0;
    counts[tie.index / kPlanBlock] -= 1;
  }
}

// Counts of blocks become how many are before each, and last how many there are in all.
inline void offsets_of_counts(int64_t* counts, int64_t blocks) {
  int64_t offset = 0;
  for (int64_t block = 0; block < blocks; ++block) offset += std::exchange(counts[block], offset);
  counts[blocks] = offset;
}

// Writes weight_class [num_samples] and block_offsets [number of blocks + 1]: how many are kept
// before each block, and in all. keep_den = 0 draws independently, with the cuts of the rule.
template <typename Sample, typename Parallel>
void plan_samples(const Sample* samples, int64_t num_samples, Decision rule, int unseen_band,
                  const std::vector<int64_t>& keep_num, int64_t keep_den, const Parallel& parallel,
                  uint8_t* weight_class, int64_t* block_offsets) {
  const bool fixed = keep_den > 0;
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  Quota quota = {};
  if (fixed) {
    quota = fix_counts(count_draws(samples, num_samples, rule, unseen_band, parallel), keep_num,
                       keep_den, unseen_band, &rule);
    rule.draws = true;
  }
  std::vector<Tie> ties;
  std::mutex guard;
  parallel(0, blocks, kGrain, [&](int64_t first, int64_t last) {
    std::vector<BlockScratch> scratch(1);
    std::vector<Tie> part;
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kPlanBlock;
      const int64_t size = block_size(begin, num_samples);
      if (rule.draws) draw_block(rule.first + begin, rule.seed, rule.epoch, scratch[0].draw);
      key_block(samples + begin, size, scratch.data());
      block_offsets[block] = decide_block(rule, size, scratch.data(), weight_class + begin);
      if (fixed) collect_ties(rule, unseen_band, begin, size, scratch[0], &part);
    }
    const std::lock_guard<std::mutex> lock(guard);
    ties.insert(ties.end(), part.begin(), part.end());
  });
  if (fixed) settle_ties(std::move(ties), quota, weight_class, block_offsets);
  offsets_of_counts(block_offsets, blocks);
}

}  // namespace prune_engine
