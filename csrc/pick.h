// SPDX-License-Identifier: Apache-2.0
// The arithmetic of pick, shared by every compiled backend: who is eligible, sizes in fixed point,
// the walk, and the points that choose along it (SEMANTICS 3.11). 64-bit integers throughout, and
// one float division per weight, so any partition of the work gives the same bits.
#pragma once

#include "bijection.h"

namespace prune_engine {

constexpr uint32_t kStreamPick = 16;
constexpr uint32_t kPickStartCall = 8;  // calls 0 to 7 are the walk's
constexpr uint64_t kWalkLimit = 1024;   // up to this many take kRoundsSmall
constexpr uint32_t kKeyOfMinusInf = 0x007fffffu;
constexpr uint32_t kKeyOfZero = 0x80000000u;
constexpr int64_t kMaxSite = (int64_t{1} << 27) - 1;

enum PickRule : int { kPickTop, kPickRandom, kPickProportional };

struct PickKey {
  uint64_t seed;
  uint32_t epoch, step, rank, site;
};

PE_HD Philox4 pick_words(const PickKey& key, uint32_t call) {
  return philox4x32(key.step, key.rank, kStreamPick * (key.site + 1) + call, key.epoch,
                    static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32));
}

// What epoch and step hold beyond 32 bits does not count.
PE_HD PickKey make_pick_key(int64_t seed, const int64_t* epoch, const int64_t* step, int64_t rank,
                            int64_t site) {
  return {static_cast<uint64_t>(seed), static_cast<uint32_t>(*epoch), static_cast<uint32_t>(*step),
          static_cast<uint32_t>(rank), static_cast<uint32_t>(site)};
}

// Call 0 to 7 of the walk's round keys, of which a large batch uses the first two.
PE_HD void make_round_keys(const PickKey& key, uint32_t call, Bijection* pi) {
  const Philox4 words = pick_words(key, call);
  for (int word = 0; word < 4; ++word) pi->key[4 * call + word] = words.word[word];
}

// 0 where an element cannot be chosen: nan and -inf. +inf counts as the largest float.
PE_HD uint32_t eligible_key(float value) {
  const uint32_t key = sample_key(value);
  if (key <= kKeyOfMinusInf) return kNoKey;
  return key > kHighestFiniteKey ? kHighestFiniteKey : key;
}

// A score as mantissa * 2^(place - 149), of a positive one's key.
PE_HD uint32_t mantissa_of(uint32_t key) {
  return (key & 0x7fffffu) | ((key & 0x7f800000u) != 0 ? 0x800000u : 0u);
}
PE_HD uint32_t place_of(uint32_t key) {
  const uint32_t exponent = (key >> 23) & 0xffu;
  return exponent - (exponent != 0 ? 1 : 0);
}

// From keys to sizes, in units of 2^-shift of the largest's last place.
struct PickSizes {
  bool equal;     // the rule is random
  int shift;      // of a mantissa: the sum of all sizes stays below 2^62
  uint32_t high;  // place of the largest; 0 where none is positive
  int64_t least;  // 1, or the floor
};

PE_HD PickSizes make_pick_sizes(int rule, int64_t count, uint32_t largest) {
  int bits = 0;
  for (int64_t rest = count; rest != 0; rest >>= 1) ++bits;
  const int places = 62 - bits < 46 ? 62 - bits : 46;
  return {rule == kPickRandom, places - 24, largest > kKeyOfZero ? place_of(largest) : 0, 1};
}

// key: at most the largest, whose place is sizes.high. Without branches, so that loops vectorise.
PE_HD int64_t size_of_key(uint32_t key, const PickSizes& sizes) {
  const uint32_t gap = sizes.high - place_of(key);  // of a positive score
  const uint64_t shifted =
      (static_cast<uint64_t>(mantissa_of(key)) << sizes.shift) >> (gap < 63 ? gap : 63);
  const int64_t size = key > kKeyOfZero && !sizes.equal ? static_cast<int64_t>(shifted) : 0;
  const int64_t least = key != kNoKey ? sizes.least : 0;
  return size > least ? size : least;
}

// Where k are chosen: those above the edge are certain, left of the others are chosen, and the
// others' sizes sum to area.
struct PickCaps {
  int64_t area, left, edge;
};

// The floor: a share, in 65536ths, of the mean of min(size, t), with t = area / left of the sizes
// without one.
PE_HD int64_t least_size(const PickCaps& caps, int64_t k, int64_t eligible, int64_t floor) {
  const int64_t mean = k * ((caps.area + caps.left - 1) / caps.left) / eligible;
  const int64_t least = (mean * floor) >> 16;
  return least > 1 ? least : 1;
}

// The points floor((t * area + start) / left), t < left, without a number above 2^63.
struct PickLine {
  int64_t step, step_rest, start, start_rest, left;
};

PE_HD PickLine make_line(const PickCaps& caps, const Philox4& words) {
  const int64_t high = words.word[1] >> 1, low = words.word[0] >> 1;
  const int64_t upper = caps.area >> 31, lower = caps.area & 0x7fffffff;
  // floor(R * area / 2^62) with R = high * 2^31 + low.
  const int64_t start = high * upper + ((high * lower + low * upper + ((low * lower) >> 31)) >> 31);
  return {caps.area / caps.left, caps.area % caps.left, start / caps.left, start % caps.left,
          caps.left};
}

PE_HD int64_t point_of(const PickLine& line, int64_t t) {
  return t * line.step + line.start + (t * line.step_rest + line.start_rest) / line.left;
}

// How many points lie below a place: 31 steps at most.
PE_HD int64_t points_below(const PickLine& line, int64_t place) {
  int64_t low = 0, high = line.left;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (point_of(line, middle) < place) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The inverse of the probability: two conversions and one division, each to nearest even.
PE_HD float pick_weight(int64_t size, const PickCaps& caps) {
  return size > caps.edge ? 1.0f
                          : static_cast<float>(caps.area) / static_cast<float>(caps.left * size);
}

}  // namespace prune_engine
