// SPDX-License-Identifier: Apache-2.0
// The keep draws of a plan block (philox.h), by vectors of groups. A round multiplies 32-bit words
// to 64 bits, which vectors can only do to the lower halves of 64-bit lanes: so every word has such
// a lane, whose upper half may hold anything. Compilers do not find that by themselves (measured on
// Zen 4: 0.80 ns a sample by the loop they vectorise, 0.20 by 512 bits, 0.52 by 128).
#pragma once

#include "../philox.h"
#include "dispatch.h"

#if PE_X86
#include <immintrin.h>
#endif

namespace prune_engine {

constexpr int64_t kGroup = 8;  // samples per Philox call
constexpr int64_t kGroups = kPlanBlock / kGroup;

// What the groups of a block share: counter words but the first, key. A block of groups never
// crosses a multiple of 2^32, so the second word is constant.
struct KeepBlock {
  uint32_t first, high, epoch, k0, k1;
};

inline KeepBlock keep_block(int64_t begin, uint64_t seed, uint32_t epoch) {
  const uint64_t first = static_cast<uint64_t>(begin) / kGroup;
  return {static_cast<uint32_t>(first), static_cast<uint32_t>(first >> 32), epoch,
          static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

// draw [kPlanBlock], one group at a time: what the others must equal.
inline void draw_groups(const KeepBlock& block, uint16_t* draw) {
  for (uint32_t g = 0; g < kGroups; ++g) {
    const Philox4 words =
        philox4x32(block.first + g, block.high, kStreamKeep, block.epoch, block.k0, block.k1);
    for (uint32_t i = 0; i < kGroup; ++i) {
      draw[kGroup * g + i] = static_cast<uint16_t>(draw_of_words(words, i));
    }
  }
}

#if PE_X86

// The same by LANES groups in a register, two registers in flight. A group's draws are its words
// one after the other, so unpacking two halves puts those of consecutive groups in order where lane
// 2j has the j-th group and lane 2j + 1 the one LANES / 2 behind.
#define PE_DRAW_GROUPS(NAME, ISA, REGISTER, LANES, MULTIPLY, UNPACK_LOW, UNPACK_HIGH)     \
  __attribute__((target(ISA))) inline void NAME(const KeepBlock& block, uint16_t* draw) { \
    typedef uint64_t Words __attribute__((vector_size(8 * (LANES)), may_alias));          \
    const Words zero = {}, m0 = zero + 0xD2511F53u, m1 = zero + 0xCD9E8D57u;              \
    Words lane = zero;                                                                    \
    for (int i = 0; i < (LANES); ++i)                                                     \
      lane[i] = static_cast<uint64_t>(i / 2 + i % 2 * (LANES) / 2);                       \
    for (uint32_t g = 0; g < kGroups; g += 2 * (LANES)) {                                 \
      Words c0[2], c1[2], c2[2], c3[2];                                                   \
      for (uint32_t u = 0; u < 2; ++u) {                                                  \
        c0[u] = lane + (block.first + g + u * (LANES));                                   \
        c1[u] = zero + block.high;                                                        \
        c2[u] = zero + kStreamKeep;                                                       \
        c3[u] = zero + block.epoch;                                                       \
      }                                                                                   \
      uint32_t k0 = block.k0, k1 = block.k1;                                              \
      for (int round = 0; round < 10; ++round) {                                          \
        for (int u = 0; u < 2; ++u) {                                                     \
          const auto p0 = (Words)MULTIPLY((REGISTER)c0[u], (REGISTER)m0);                 \
          const auto p1 = (Words)MULTIPLY((REGISTER)c2[u], (REGISTER)m1);                 \
          c0[u] = (p1 >> 32) ^ c1[u] ^ k0;                                                \
          c2[u] = (p0 >> 32) ^ c3[u] ^ k1;                                                \
          c1[u] = p1;                                                                     \
          c3[u] = p0;                                                                     \
        }                                                                                 \
        k0 += 0x9E3779B9u;                                                                \
        k1 += 0xBB67AE85u;                                                                \
      }                                                                                   \
      for (uint32_t u = 0; u < 2; ++u) {                                                  \
        const Words low = (c0[u] & 0xffffffffu) | (c1[u] << 32);                          \
        const Words high = (c2[u] & 0xffffffffu) | (c3[u] << 32);                         \
        const auto front = (Words)UNPACK_LOW((REGISTER)low, (REGISTER)high);              \
        const auto back = (Words)UNPACK_HIGH((REGISTER)low, (REGISTER)high);              \
        uint16_t* out = draw + kGroup * (g + u * (LANES));                                \
        std::memcpy(out, &front, sizeof front);                                           \
        std::memcpy(out + kGroup * (LANES) / 2, &back, sizeof back);                      \
      }                                                                                   \
    }                                                                                     \
  }
// Masks that are all ones change nothing but a false warning of GCC 12 about the forms without.
#define PE_MULTIPLY_512(a, b) _mm512_maskz_mul_epu32(0xff, a, b)
#define PE_UNPACK_LOW_512(a, b) _mm512_maskz_unpacklo_epi64(0xff, a, b)
#define PE_UNPACK_HIGH_512(a, b) _mm512_maskz_unpackhi_epi64(0xff, a, b)
PE_DRAW_GROUPS(draw_groups_avx512, "avx512f", __m512i, 8, PE_MULTIPLY_512, PE_UNPACK_LOW_512,
               PE_UNPACK_HIGH_512)
PE_DRAW_GROUPS(draw_groups_avx2, "avx2", __m256i, 4, _mm256_mul_epu32, _mm256_unpacklo_epi64,
               _mm256_unpackhi_epi64)
PE_DRAW_GROUPS(draw_groups_sse2, "sse2", __m128i, 2, _mm_mul_epu32, _mm_unpacklo_epi64,
               _mm_unpackhi_epi64)
#undef PE_MULTIPLY_512
#undef PE_UNPACK_LOW_512
#undef PE_UNPACK_HIGH_512
#undef PE_DRAW_GROUPS

#endif

// The draws of the block of kPlanBlock samples that begins at a multiple of as many.
inline void draw_block(int64_t begin, uint64_t seed, uint32_t epoch, uint16_t* draw) {
  const KeepBlock block = keep_block(begin, seed, epoch);
#if PE_X86
  if (has_avx512()) return draw_groups_avx512(block, draw);
  if (has_avx2()) return draw_groups_avx2(block, draw);
  draw_groups_sse2(block, draw);
#else
  draw_groups(block, draw);
#endif
}

}  // namespace prune_engine
