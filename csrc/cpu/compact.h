// SPDX-License-Identifier: Apache-2.0
// The list of the kept samples, shared by compact.cpp and host.cpp (Parallel: see plan.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "../rule.h"
#include "dispatch.h"

#if PE_X86
#include <immintrin.h>
#endif

namespace prune_engine {

constexpr int64_t kSpare = 16;  // entries that a buffer has beyond a block, for the last write

// Branch-free: always write, advance when kept.
inline int64_t compact_block(const uint8_t* weight_class, int64_t begin, int64_t size,
                             int32_t* buffer) {
  int64_t kept = 0;
  for (int64_t i = 0; i < size; ++i) {
    buffer[kept] = static_cast<int32_t>(begin + i);
    kept += weight_class[begin + i] != 0;
  }
  return kept;
}

#if PE_X86
// The same by vectors that move the kept to their front: in a register, for doing so on the way to
// memory takes many times as long on some processors.
__attribute__((target("avx512f,avx512bw,avx512vl"))) inline int64_t compact_block_avx512(
    const uint8_t* weight_class, int64_t begin, int64_t size, int32_t* buffer) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t kept = 0;
  for (int64_t i = 0; i < size; i += 64) {
    const __mmask64 there = size - i < 64 ? (__mmask64{1} << (size - i)) - 1 : ~__mmask64{0};
    const __m512i classes = _mm512_maskz_loadu_epi8(there, weight_class + begin + i);
    const uint64_t stays = _mm512_test_epi8_mask(classes, classes);
    for (int64_t part = 0; part < 64; part += 16) {
      const auto here = static_cast<__mmask16>(stays >> part);
      const auto first = static_cast<int32_t>(begin + i + part);
      const __m512i index = _mm512_add_epi32(lane, _mm512_set1_epi32(first));
      _mm512_storeu_si512(buffer + kept, _mm512_maskz_compress_epi32(here, index));
      kept += __builtin_popcount(here);
    }
  }
  return kept;
}
#endif

// Writes kept [num_kept]; false where the offsets are not those of these classes.
template <typename Parallel>
bool compact_samples(const uint8_t* weight_class, int64_t num_samples, const int64_t* offsets,
                     int64_t num_kept, const Parallel& parallel, int32_t* kept) {
  std::atomic<bool> consistent{true};
  parallel(0, num_blocks(num_samples, kPlanBlock), 8, [&](int64_t first, int64_t last) {
    int32_t buffer[kPlanBlock + kSpare];
    auto* compact = compact_block;
#if PE_X86
    if (has_avx512()) compact = compact_block_avx512;
#endif
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kPlanBlock;
      const int64_t size = block_size(begin, num_samples);
      const int64_t count = compact(weight_class, begin, size, buffer);
      // Offsets of other classes would write outside the list.
      if (offsets[block] < 0 || offsets[block] + count != offsets[block + 1] ||
          offsets[block + 1] > num_kept) {
        consistent = false;
        return;
      }
      std::memcpy(kept + offsets[block], buffer, static_cast<size_t>(count) * sizeof(int32_t));
    }
  });
  return consistent;
}

}  // namespace prune_engine
