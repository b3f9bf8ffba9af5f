// SPDX-License-Identifier: Apache-2.0
// plan_levels on the CPU: one pass over the records, each sample in the class of its cell.
#include <vector>

#include "../check.h"
#include "../levels.h"
#include "memory.h"
#include "parallel.h"
#include "plan.h"

namespace prune_engine {
namespace {

// weight_class of a block from scratch->key and scratch->draw; returns how many are kept. A fate is
// a cut and the class it is of, looked up in a loop of its own: with the arithmetic of the class in
// the same loop neither is vectorised.
PE_CLONES int64_t decide_levels(int32_t top, const uint32_t* fates, int64_t size,
                                BlockScratch* scratch, uint8_t* weight_class) {
  const auto count = static_cast<int32_t>(size);
  uint32_t* fate = scratch->fate;
  const uint32_t* key = scratch->key;
  for (int32_t i = 0; i < count; ++i) {
    const auto cell = static_cast<int32_t>(key[i] >> kCellShift);
    constexpr auto first = static_cast<int32_t>(kFirstCell);
    const int32_t level = top + 1 - (cell > first ? cell : first);
    const int32_t above = level > 1 ? level : 1;
    const int32_t within = above < kNumClasses - 1 ? above : kNumClasses - 1;
    fate[i] = key[i] == kNoKey ? 1 : static_cast<uint32_t>(within);
  }
  for (int32_t i = 0; i < count; ++i) fate[i] = fates[fate[i]];
  return apply_fates(count, scratch, weight_class);
}

}  // namespace

Tensor plan_levels_cpu(Tensor records,  // [N] int64
                       Tensor top,      // [1] int32
                       Tensor cut,      // [256] int32
                       int64_t seed, int64_t epoch,
                       Tensor weight_class,  // [N] uint8, changed
                       int64_t first) {
  check_plan_levels(records, top, cut, seed, epoch, weight_class, first);
  uint32_t fates[kNumClasses];
  for (int k = 0; k < kNumClasses; ++k) {
    const int32_t mine = cut.const_data_ptr<int32_t>()[k];
    STD_TORCH_CHECK(mine >= 0 && mine <= kDraws, "cut must be in 0..65536, got ", mine);
    fates[k] = make_fate(static_cast<uint32_t>(mine), static_cast<uint8_t>(k));
  }
  const int32_t highest = top.const_data_ptr<int32_t>()[0];
  STD_TORCH_CHECK(highest >= kFirstCell && highest <= first_top(kHighestTheta) + 16,
                  "top must be a cell in 4112..8448, got ", highest);
  const int64_t num_samples = records.numel();
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  Tensor block_offsets = torch::stable::new_empty(records, {blocks + 1}, ScalarType::Long);
  const int64_t* all_records = records.const_data_ptr<int64_t>();
  uint8_t* out = weight_class.mutable_data_ptr<uint8_t>();
  int64_t* offsets = block_offsets.mutable_data_ptr<int64_t>();
  prefer_huge_pages(out, static_cast<size_t>(num_samples));

  TorchThreads{}(0, blocks, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<BlockScratch> scratch(1);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t at = block * kPlanBlock;
      const int64_t size = block_size(at, num_samples);
      draw_block(first + at, static_cast<uint64_t>(seed), static_cast<uint32_t>(epoch),
                 scratch[0].draw);
      key_block(all_records + at, size, scratch.data());
      offsets[block] = decide_levels(highest, fates, size, scratch.data(), out + at);
    }
  });
  offsets_of_counts(offsets, blocks);
  return block_offsets;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("plan_levels", TORCH_BOX(&prune_engine::plan_levels_cpu));
}
