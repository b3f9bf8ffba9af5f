// SPDX-License-Identifier: Apache-2.0
// The keyed bijection pi of [0, n): position of the epoch -> rank in the kept list.
//
// A Feistel network on a 2^k x b grid with cycle walking, after Mitchell, Stokes, Frank and Holmes,
// "Bandwidth-Optimal Random Shuffling for GPUs" (2022). Their 2^k x 2^k grid holds up to 4 n
// points; letting one side be any b leaves fewer than 2^k points outside [0, n), so a walk is
// rare, and 2^k keeps the division away. Sides are added to, not XORed: XOR gives even
// permutations only.
#pragma once

#include "philox.h"

namespace prune_engine {

constexpr int kRoundsSmall = 32;  // 12 rounds fail a chi-square over permutations at n = 5
constexpr int kRoundsLarge = 8;
constexpr uint64_t kRoundsLimit = 65536;

struct Bijection {
  uint64_t n;
  uint64_t columns;  // b = ceil(n / 2^k)
  uint32_t bits;     // k, the smallest with 4^k >= n
  uint32_t mask;     // 2^k - 1
  int rounds;        // even
  uint32_t key[kRoundsSmall];
};

// All but the keys. Sets up to the limit take the many rounds.
PE_HD void set_grid(uint64_t n, uint64_t limit, Bijection* pi) {
  pi->n = n;
  pi->bits = 0;
  while ((1ull << (2 * pi->bits)) < n) ++pi->bits;
  pi->mask = static_cast<uint32_t>((1ull << pi->bits) - 1);
  pi->columns = (n + pi->mask) >> pi->bits;
  pi->rounds = n <= limit ? kRoundsSmall : kRoundsLarge;
}

// None of the three is negative.
inline Bijection make_bijection(int64_t num_places, int64_t seed, int64_t epoch) {
  const auto n = static_cast<uint64_t>(num_places);
  Bijection pi;
  set_grid(n, kRoundsLimit, &pi);
  for (int call = 0; call < pi.rounds / 4; ++call) {
    const Philox4 words =
        philox4x32(static_cast<uint32_t>(n), static_cast<uint32_t>(n >> 32),
                   kStreamOrder + static_cast<uint32_t>(call), static_cast<uint32_t>(epoch),
                   static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    for (int word = 0; word < 4; ++word) pi.key[4 * call + word] = words.word[word];
  }
  return pi;
}

// Positions of an epoch that are asked for.
struct Positions {
  const int64_t* given;  // [count], or null: start + m * step
  int64_t start;
  int64_t step;
  int64_t count;
};

PE_HD int64_t position_at(const Positions& positions, int64_t m) {
  return positions.given != nullptr ? positions.given[m] : positions.start + m * positions.step;
}

PE_HD uint32_t hash32(uint32_t x, uint32_t key) {
  uint32_t h = x + key;
  h ^= h >> 16;
  h *= 0x21f0aaadu;
  h ^= h >> 15;
  h *= 0xd35a2d97u;
  h ^= h >> 15;
  return h;
}

// How far an even round moves a column down: the top k bits of a hash; below 2^k.
PE_HD uint32_t row_shift(const Bijection& pi, int round, uint32_t column) {
  // A 64-bit shift because k may be 0.
  const uint64_t top = static_cast<uint64_t>(hash32(column, pi.key[round])) << pi.bits;
  return static_cast<uint32_t>(top >> 32);
}

// How far an odd round moves a row to the right; below b, which is at most 2^31.
PE_HD uint32_t column_shift(const Bijection& pi, int round, uint32_t row) {
  const auto columns = static_cast<uint32_t>(pi.columns);
  const uint64_t share = static_cast<uint64_t>(hash32(row, pi.key[round])) * columns;
  return static_cast<uint32_t>(share >> 32);
}

struct Cell {
  uint32_t row, column;
};

PE_HD Cell two_rounds(const Bijection& pi, int round, Cell at) {
  const auto columns = static_cast<uint32_t>(pi.columns);
  const uint32_t row = (at.row + row_shift(pi, round, at.column)) & pi.mask;
  const uint32_t column = at.column + column_shift(pi, round + 1, row);
  const uint32_t wrapped = column - columns;  // 2^31 or more where nothing was to be taken away
  return {row, column < wrapped ? column : wrapped};
}

// One pass of the network over the grid; a bijection of [0, 2^k * b). kRounds: known beforehand,
// and written out on a GPU, so that a key is an operand and not a load; 0: pi.rounds, in a loop.
template <int kRounds = 0>
PE_HD uint64_t feistel(const Bijection& pi, uint64_t position) {
  Cell at = {static_cast<uint32_t>(position) & pi.mask, static_cast<uint32_t>(position >> pi.bits)};
  if (kRounds > 0) {
    PE_UNROLL
    for (int round = 0; round < kRounds; round += 2) at = two_rounds(pi, round, at);
  } else {
#if defined(__CUDA_ARCH__)
#pragma unroll 1  // see invert_feistel
#endif
    for (int round = 0; round < pi.rounds; round += 2) at = two_rounds(pi, round, at);
  }
  return (static_cast<uint64_t>(at.column) << pi.bits) | at.row;
}

// The position that one pass of the network takes to y.
PE_HD uint64_t invert_feistel(const Bijection& pi, uint64_t y) {
  uint32_t row = static_cast<uint32_t>(y) & pi.mask;
  uint32_t column = static_cast<uint32_t>(y >> pi.bits);
  const uint32_t columns = static_cast<uint32_t>(pi.columns);
#if defined(__CUDA_ARCH__)
#pragma unroll 1  // each round waits for the one before: copies would be bytes alone
#endif
  for (int round = pi.rounds - 2; round >= 0; round -= 2) {
    const uint32_t moved = column_shift(pi, round + 1, row);
    column += column < moved ? columns - moved : 0 - moved;
    row = (row - row_shift(pi, round, column)) & pi.mask;
  }
  return (static_cast<uint64_t>(column) << pi.bits) | row;
}

template <int kRounds = 0>
PE_HD uint64_t apply_bijection(const Bijection& pi, uint64_t position) {
  uint64_t y = position;
  do {
    y = feistel<kRounds>(pi, y);
  } while (y >= pi.n);  // ends: the network is a bijection and position < n
  return y;
}

PE_HD uint64_t invert_bijection(const Bijection& pi, uint64_t rank) {
  uint64_t y = rank;
  do {
    y = invert_feistel(pi, y);
  } while (y >= pi.n);
  return y;
}

}  // namespace prune_engine
