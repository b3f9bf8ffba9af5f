// SPDX-License-Identifier: Apache-2.0
// cells on the CPU: one read of the records.
#include <algorithm>
#include <mutex>
#include <vector>

#include "../check.h"
#include "../levels.h"
#include "dispatch.h"

namespace prune_engine {
namespace {

constexpr int64_t kChunk = 1024;  // whose records and bins stay in L1, beside the tables

PE_CLONES void find_bins(const int64_t* records, int64_t size, uint32_t* bins) {
  for (int64_t i = 0; i < size; ++i) {
    const auto key = static_cast<uint32_t>(records[i]);
    const uint32_t cell = key >> kCellShift;
    const uint32_t seen = (cell > kFirstCell ? cell : kFirstCell) - kFirstCell;
    bins[i] = key == kNoKey ? kUnseenCell : seen;
  }
}

constexpr int kTables = 8;

// Eight tables in turn, for neighbours that share a cell would wait for one another's count. A part
// has fewer than 2^32 samples.
void count_range(const int64_t* records, int64_t begin, int64_t end, int64_t* counts) {
  std::vector<uint32_t> table(kTables * kCells, 0);
  uint32_t bins[kChunk];
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t size = std::min(kChunk, end - at);
    find_bins(records + at, size, bins);
    // The next chunk comes while this one is counted, which waits for no memory.
    const int64_t* next = records + (at + 2 * kChunk <= end ? at + kChunk : at);
    int64_t i = 0;
    for (; i + kTables <= size; i += kTables) {
      __builtin_prefetch(next + i);  // a line of kTables records
      for (int t = 0; t < kTables; ++t) ++table[static_cast<size_t>(bins[i + t] * kTables + t)];
    }
    for (; i < size; ++i) ++table[static_cast<size_t>(bins[i] * kTables)];
  }
  for (size_t k = 0; k < table.size(); ++k) counts[k / kTables] += table[k];
}

}  // namespace

Tensor cells_cpu(Tensor records /* [N] int64 */) {
  check_records(records);
  Tensor counts = torch::stable::new_empty(records, {kCells}, ScalarType::Long);
  const int64_t* all_records = records.const_data_ptr<int64_t>();
  int64_t* out = counts.mutable_data_ptr<int64_t>();
  std::fill_n(out, kCells, int64_t{0});
  std::mutex guard;
  torch::stable::parallel_for(0, records.numel(), 65536, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> part(kCells, 0);
    count_range(all_records, begin, end, part.data());
    const std::lock_guard<std::mutex> lock(guard);
    for (int k = 0; k < kCells; ++k) out[k] += part[static_cast<size_t>(k)];
  });
  return counts;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("cells", TORCH_BOX(&prune_engine::cells_cpu));
}
