// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy
// as 1, 2, 3" (SC 2011), and the keep draw made from it.
#pragma once

#include "semantics.h"

namespace prune_engine {

struct Philox4 {
  uint32_t word[4];
};

PE_HD Philox4 philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                         uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t next0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t next2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = next0;
    c2 = next2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// One call serves the eight samples of a group: index >> 3 is the counter.
PE_HD Philox4 keep_words(uint64_t group, uint64_t seed, uint32_t epoch) {
  return philox4x32(static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), kStreamKeep,
                    epoch, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

PE_HD uint32_t draw_of_words(const Philox4& words, uint64_t index) {
  return (words.word[(index >> 1) & 3] >> (16 * (index & 1))) & 0xffffu;
}

// The 16-bit keep draw: a pure function of (seed, epoch, index).
PE_HD uint32_t keep_draw(uint64_t index, uint64_t seed, uint32_t epoch) {
  return draw_of_words(keep_words(index >> 3, seed, epoch), index);
}

// The 32-bit draw by itself: a pure function of (seed, epoch, stream, index).
PE_HD uint32_t stream_draw(uint64_t index, uint64_t seed, uint32_t epoch, uint32_t stream) {
  const uint64_t group = index >> 2;
  return philox4x32(static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32),
                    kStreamsPerDraw * stream + kStreamDraw, epoch, static_cast<uint32_t>(seed),
                    static_cast<uint32_t>(seed >> 32))
      .word[index & 3];
}

// What orders equal scores: 31 bits, above 0.
PE_HD uint32_t tie_key(uint64_t index, uint64_t seed, uint32_t epoch) {
  return 1 + (stream_draw(index, seed, epoch, kStreamTies) >> 1);
}

}  // namespace prune_engine
