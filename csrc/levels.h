// SPDX-License-Identifier: Apache-2.0
// Levels of scores for importance sampling, shared by every compiled backend: sixteen cells to an
// octave of scores, how many of the 65536 draws keep a sample of a cell, and the levels of one
// threshold. Integers, and one IEEE-754 division for a weight (SEMANTICS 3.12).
#pragma once

#include "semantics.h"

namespace prune_engine {

constexpr int kCellShift = 19;            // 16 cells to an octave
constexpr int64_t kFirstCell = 4112;      // of zero, negative, subnormal and the smallest scores
constexpr int kCells = 4096;              // of a count of cells
constexpr int kUnseenCell = kCells - 1;   // never seen
constexpr int kScoreCells = kCells - 32;  // bins of finite scores
constexpr int64_t kLowestTheta = int64_t{1} << 23, kHighestTheta = int64_t{271} << 23;
constexpr int64_t kMostCounted = int64_t{1} << 46;  // 65536 times as many is an int64

PE_HD int64_t cell_of(uint32_t key) {
  const auto cell = static_cast<int64_t>(key >> kCellShift);
  return cell > kFirstCell ? cell : kFirstCell;
}

PE_HD int bin_of(uint32_t key) {
  return key == kNoKey ? kUnseenCell : static_cast<int>(cell_of(key) - kFirstCell);
}

// How many of the 65536 draws keep a sample of a cell: 65536 min(1, r / tau), rounded down, at
// least `least`. theta = e << 23 | T - 2^23 stands for tau = T 2^(e - 150), the bits of that float
// where it is one; r is the middle of the cell.
PE_HD int64_t keep_of(int64_t theta, int64_t cell, int64_t least) {
  const int64_t exponent = theta >> 23;
  const int64_t significand = (int64_t{1} << 23) | (theta & 0x7fffff);
  const int64_t octave = (cell - 4096) >> 4;
  const int64_t shift = 34 + octave - exponent;
  int64_t keep = kDraws;
  if (octave <= exponent) {
    keep = shift < 0 ? 0 : ((33 + 2 * (cell & 15)) << shift) / significand;
    keep = keep < kDraws ? keep : kDraws;
  }
  return keep > least ? keep : least;
}

// Of cells base .. base + 16, one is the lowest that every draw keeps.
PE_HD int64_t first_top(int64_t theta) { return 4096 + 16 * (theta >> 23); }

PE_HD bool is_top(int64_t theta, int64_t cell) {
  return keep_of(theta, cell, 0) == kDraws &&
         (cell == first_top(theta) || keep_of(theta, cell - 1, 0) < kDraws);
}

// How many draws keep a sample of a weight class: class 1 is of cell `top` and above; each further
// class one cell lower; class 255 all that are left.
PE_HD int64_t level_keep(int64_t theta, int64_t top, int weight_class, int64_t least) {
  if (weight_class == 0) return 0;
  if (weight_class == 1) return kDraws;
  const int64_t cell = top + 1 - weight_class;
  if (weight_class == kNumClasses - 1 || cell < kFirstCell) return least;
  return keep_of(theta, cell, least);
}

PE_HD float level_weight(int64_t keep) {
  return keep == 0 ? 0.0f : 65536.0f / static_cast<float>(keep);
}

// The class of a cell.
PE_HD int32_t level_of(int32_t cell, int32_t top) {
  const int32_t level = top + 1 - cell;
  const int32_t within = level > 1 ? level : 1;
  return within < kNumClasses - 1 ? within : kNumClasses - 1;
}

}  // namespace prune_engine
