// SPDX-License-Identifier: Apache-2.0
// The exact sum of many scores at once, shared by audit and the NumPy module. A block of keys is
// split into 32-bit halves in one pass; then one pass for each group of exponents that the block
// has, of which ordinary losses have one or two. The loops are written so that compilers vectorise
// them (dispatch.h); integers commute, so neither blocks nor threads show.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../exact_sum.h"
#include "dispatch.h"

namespace prune_engine {

constexpr int32_t kSurveyBlock = 1024;  // at most 65536: see Halves

struct SurveyScratch {
  uint32_t key[kSurveyBlock];
  uint32_t low[kSurveyBlock], high[kSurveyBlock];  // of the addend
  uint32_t group[kSurveyBlock];                    // 1 << group; 0 where nothing is added
};

struct Split {
  uint32_t groups;  // those that the block has
  int32_t seen;
};

inline PE_CLONES Split split_keys(int32_t size, SurveyScratch* scratch) {
  uint32_t groups = 0, seen = 0;
  for (int32_t i = 0; i < size; ++i) {
    const uint32_t key = scratch->key[i];
    const uint32_t is_seen = key != kNoKey ? 1 : 0;
    const uint32_t negative = (key >> 31) - 1;
    const uint32_t bits = (key ^ negative) & 0x7fffffffu & (0 - is_seen);
    const uint32_t exponent = bits >> 23, normal = exponent != 0 ? 1 : 0;
    const uint32_t place = exponent - normal, shift = place & 31;
    const uint32_t mantissa = (bits & 0x7fffffu) | (normal << 23);
    const uint32_t low = mantissa << shift, high = (mantissa >> 1) >> (31 - shift);
    scratch->low[i] = (low ^ negative) - negative;
    scratch->high[i] = (high ^ negative) + (low == 0 ? negative & 1 : 0);
    const uint32_t has_value = mantissa != 0 ? 1 : 0;
    const uint32_t group = (1u << (place >> 5)) & (0 - has_value);
    scratch->group[i] = group;
    groups |= group;
    seen += is_seen;
  }
  return {groups, static_cast<int32_t>(seen)};
}

// Halves of addends, summed modulo 2^32 and, without their low 16 bits, exactly: with the low 16
// bits of a block's fewer than 2^32, the two together say the exact sum.
struct Halves {
  uint32_t low = 0, low_upper = 0, high = 0;
  int32_t high_upper = 0;

  // To limb[0] and limb[1].
  void add_to(int64_t* limb) const {
    limb[0] += int64_t{low_upper} * 65536 + (low - (low_upper << 16));
    limb[1] += int64_t{high_upper} * 65536 + (high - (static_cast<uint32_t>(high_upper) << 16));
  }
};

// What the scores of one group add, to limb[0] and limb[1].
inline PE_CLONES void add_group(const SurveyScratch& scratch, int32_t size, uint32_t group,
                                int64_t* limb) {
  Halves sum;
  for (int32_t i = 0; i < size; ++i) {
    const uint32_t here = 0 - static_cast<uint32_t>(scratch.group[i] == group ? 1 : 0);
    const uint32_t low = scratch.low[i] & here, high = scratch.high[i] & here;
    sum.low += low;
    sum.low_upper += low >> 16;
    sum.high += high;
    sum.high_upper += static_cast<int32_t>(high) >> 16;
  }
  sum.add_to(limb);
}

// The same where all scores that add anything are of one group.
inline PE_CLONES void add_all(const SurveyScratch& scratch, int32_t size, int64_t* limb) {
  Halves sum;
  for (int32_t i = 0; i < size; ++i) {
    const uint32_t low = scratch.low[i], high = scratch.high[i];
    sum.low += low;
    sum.low_upper += low >> 16;
    sum.high += high;
    sum.high_upper += static_cast<int32_t>(high) >> 16;
  }
  sum.add_to(limb);
}

// Adds the scores of scratch->key to score_sum [10].
inline void add_keys(int32_t size, SurveyScratch* scratch, int64_t* score_sum) {
  const Split split = split_keys(size, scratch);
  score_sum[kLimbs] += split.seen;
  if ((split.groups & (split.groups - 1)) == 0) {
    for (int g = 0; g < kLimbs - 1; ++g) {
      if (split.groups == 1u << g) add_all(*scratch, size, score_sum + g);
    }
    return;
  }
  for (int g = 0; g < kLimbs - 1; ++g) {
    const uint32_t group = 1u << g;
    if ((split.groups & group) != 0) add_group(*scratch, size, group, score_sum + g);
  }
}

// Calls body(begin, size) on blocks of [begin, end).
template <typename Body>
void for_each_survey_block(int64_t begin, int64_t end, const Body& body) {
  for (int64_t at = begin; at < end; at += kSurveyBlock) {
    body(at, static_cast<int32_t>(std::min<int64_t>(kSurveyBlock, end - at)));
  }
}

}  // namespace prune_engine
