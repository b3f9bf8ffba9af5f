// SPDX-License-Identifier: Apache-2.0
// shuffle on the CPU: pi or its inverse at given places, a block at a time, for any n up to 2^62.
#include <atomic>

#include "../check.h"
#include "memory.h"
#include "order.h"
#include "parallel.h"

namespace prune_engine {
namespace {

PE_CLONES void shuffle_block(const Bijection& pi, const uint64_t* place, int32_t size,
                             uint64_t* out) {
  feistel_block(pi, place, size, out);
}

PE_CLONES void unshuffle_block(const Bijection& pi, const uint64_t* place, int32_t size,
                               uint64_t* out) {
  uint32_t row[kOrderBlock], column[kOrderBlock];
  const uint32_t mask = pi.mask, bits = pi.bits;
  const auto columns = static_cast<uint32_t>(pi.columns);
  const uint32_t shift = bits == 0 ? 31 : 32 - bits;
  for (int32_t i = 0; i < size; ++i) {
    row[i] = static_cast<uint32_t>(place[i]) & mask;
    column[i] = static_cast<uint32_t>(place[i] >> bits);
  }
  for (int round = pi.rounds - 2; round >= 0; round -= 2) {
    const uint32_t key0 = pi.key[round], key1 = pi.key[round + 1];
    for (int32_t i = 0; i < size; ++i) {
      const uint64_t share = static_cast<uint64_t>(hash32(row[i], key1)) * columns;
      const auto moved = static_cast<uint32_t>(share >> 32);
      const uint32_t from = column[i] < moved ? column[i] + columns - moved : column[i] - moved;
      row[i] = (row[i] - (hash32(from, key0) >> shift)) & mask;
      column[i] = from;
    }
  }
  for (int32_t i = 0; i < size; ++i) out[i] = (static_cast<uint64_t>(column[i]) << bits) | row[i];
}

// False where a place is outside [0, n), which nothing is computed of.
bool shuffle_range(const Bijection& pi, bool inverse, const uint64_t* places, int64_t begin,
                   int64_t end, uint64_t* out) {
  for (int64_t at = begin; at < end; at += kOrderBlock) {
    const auto size = static_cast<int32_t>(end - at < kOrderBlock ? end - at : kOrderBlock);
    bool valid = true;
    for (int32_t i = 0; i < size; ++i) valid &= places[at + i] < pi.n;
    if (!valid) return false;
    inverse ? unshuffle_block(pi, places + at, size, out + at)
            : shuffle_block(pi, places + at, size, out + at);
    for (int64_t i = at; i < at + size; ++i) {  // the few outside [0, n) walk on
      if (out[i] >= pi.n) {
        out[i] = inverse ? invert_bijection(pi, out[i]) : apply_bijection(pi, out[i]);
      }
    }
  }
  return true;
}

}  // namespace

Tensor shuffle_cpu(Tensor places,  // [M] int64
                   int64_t n, bool inverse, int64_t seed, int64_t epoch) {
  check_shuffle(places, n, seed, epoch);
  const int64_t count = places.numel();
  Tensor result = torch::stable::new_empty(places, {count});
  if (count == 0) return result;
  const Bijection pi = make_bijection(n, seed, epoch);
  // A negative place is a huge one, and outside.
  const auto* from = reinterpret_cast<const uint64_t*>(places.const_data_ptr<int64_t>());
  auto* to = reinterpret_cast<uint64_t*>(result.mutable_data_ptr<int64_t>());
  prefer_huge_pages(to, static_cast<size_t>(count) * sizeof(int64_t));
  std::atomic<bool> valid{true};
  TorchThreads{}(0, count, 16384, [&](int64_t begin, int64_t end) {
    if (!shuffle_range(pi, inverse, from, begin, end, to)) valid = false;
  });
  STD_TORCH_CHECK(valid, "IndexError: places must be in 0..", n - 1);
  return result;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("shuffle", TORCH_BOX(&prune_engine::shuffle_cpu));
}
