// SPDX-License-Identifier: Apache-2.0
// position -> pi(position) -> kept sample, a block of positions at a time; shared by order.cpp and
// host.cpp (Parallel: see plan.h).
#pragma once

#include <atomic>
#include <cstdint>

#include "../bijection.h"
#include "dispatch.h"
#include "rotate.h"

namespace prune_engine {

constexpr int64_t kOrderBlock = 512;

// One pass of the network over up to kOrderBlock places; a side fits in 32 bits for any n. Inlined
// into each copy of its callers, which dispatch.h makes.
template <typename Place>
__attribute__((always_inline)) inline void feistel_block(const Bijection& pi, const Place* position,
                                                         int32_t size, Place* rank) {
  uint32_t row[kOrderBlock], column[kOrderBlock];
  const uint32_t mask = pi.mask, bits = pi.bits;
  const auto columns = static_cast<uint32_t>(pi.columns);
  const uint32_t shift = bits == 0 ? 31 : 32 - bits;  // bits = 0: the mask makes it 0 anyway
  for (int32_t i = 0; i < size; ++i) {
    row[i] = static_cast<uint32_t>(position[i]) & mask;
    column[i] = static_cast<uint32_t>(position[i] >> bits);
  }
  for (int round = 0; round < pi.rounds; round += 2) {
    const uint32_t key0 = pi.key[round], key1 = pi.key[round + 1];
    for (int32_t i = 0; i < size; ++i) {
      const uint32_t next = (row[i] + (hash32(column[i], key0) >> shift)) & mask;
      const uint64_t share = static_cast<uint64_t>(hash32(next, key1)) * columns;
      const uint32_t moved = column[i] + static_cast<uint32_t>(share >> 32);
      row[i] = next;
      column[i] = moved >= columns ? moved - columns : moved;
    }
  }
  for (int32_t i = 0; i < size; ++i) rank[i] = (static_cast<Place>(column[i]) << bits) | row[i];
}

// n < 2^31 here, so a rank fits in 32 bits.
inline PE_CLONES void rank_block(const Bijection& pi, const uint32_t* position, int32_t size,
                                 uint32_t* rank) {
  feistel_block(pi, position, size, rank);
}

// The few ranks outside [0, n) walk on.
inline void walk_block(const Bijection& pi, int32_t size, uint32_t* rank) {
  const auto n = static_cast<uint32_t>(pi.n);
  for (int32_t i = 0; i < size; ++i) {
    if (rank[i] >= n) rank[i] = static_cast<uint32_t>(apply_bijection(pi, rank[i]));
  }
}

// Fills position[0..size); false where one is outside [0, n).
inline bool position_block(const Positions& positions, int64_t begin, int32_t size, uint64_t n,
                           uint32_t* position) {
  bool valid = true;
  for (int32_t i = 0; i < size; ++i) {
    const int64_t p = position_at(positions, begin + i);
    valid &= static_cast<uint64_t>(p) < n;
    position[i] = static_cast<uint32_t>(p);
  }
  return valid;
}

// The loop of loads stays apart from the network: the processor then keeps many cache misses in
// flight by itself (software prefetch was measured to be no faster).
inline bool order_range(const Bijection& pi, const Positions& positions, const int32_t* kept,
                        int64_t begin, int64_t end, int32_t* out) {
  uint32_t position[kOrderBlock], rank[kOrderBlock];
  for (int64_t at = begin; at < end; at += kOrderBlock) {
    const auto size = static_cast<int32_t>(end - at < kOrderBlock ? end - at : kOrderBlock);
    if (!position_block(positions, at, size, pi.n, position)) return false;
    rank_block(pi, position, size, rank);
    walk_block(pi, size, rank);
    for (int32_t i = 0; i < size; ++i) out[at + i] = kept[rank[i]];
  }
  return true;
}

// Writes samples [positions.count]; false where a position is outside [0, n).
template <typename Parallel>
bool order_samples(const int32_t* kept, int64_t n, const Positions& positions, int64_t seed,
                   int64_t epoch, const Parallel& parallel, int32_t* samples) {
  const Bijection pi = make_bijection(n, seed, epoch);
  const bool all = positions.given == nullptr && positions.start == 0 && positions.step == 1 &&
                   positions.count == n && rotates(pi);
  if (all) {
    order_all(pi, kept, parallel, samples);
    return true;
  }
  std::atomic<bool> valid{true};
  parallel(0, positions.count, 16384, [&](int64_t begin, int64_t end) {
    if (!order_range(pi, positions, kept, begin, end, samples)) valid = false;
  });
  return valid;
}

}  // namespace prune_engine
