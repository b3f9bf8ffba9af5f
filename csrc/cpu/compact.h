// SPDX-License-Identifier: Apache-2.0
// The list of the kept samples, shared by compact.cpp and host.cpp (Parallel: see plan.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "../rule.h"

namespace prune_engine {

// Branch-free: always write, advance when kept. The buffer has one spare entry for the last write.
inline int64_t compact_block(const uint8_t* weight_class, int64_t begin, int64_t size,
                             int32_t* buffer) {
  int64_t kept = 0;
  for (int64_t i = 0; i < size; ++i) {
    buffer[kept] = static_cast<int32_t>(begin + i);
    kept += weight_class[begin + i] != 0;
  }
  return kept;
}

// Writes kept [num_kept]; false where the offsets are not those of these classes.
template <typename Parallel>
bool compact_samples(const uint8_t* weight_class, int64_t num_samples, const int64_t* offsets,
                     int64_t num_kept, const Parallel& parallel, int32_t* kept) {
  std::atomic<bool> consistent{true};
  parallel(0, num_blocks(num_samples, kPlanBlock), 8, [&](int64_t first, int64_t last) {
    int32_t buffer[kPlanBlock + 1];
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kPlanBlock;
      const int64_t size = block_size(begin, num_samples);
      const int64_t count = compact_block(weight_class, begin, size, buffer);
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
