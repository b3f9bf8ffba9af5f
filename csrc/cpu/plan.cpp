// SPDX-License-Identifier: Apache-2.0
// plan on the CPU: one pass over the records, two with fixed counts (plan.h).
#include "plan.h"

#include "../check.h"
#include "memory.h"
#include "parallel.h"

namespace prune_engine {
Tensor plan_cpu(Tensor records,                 // [N] int64
                Tensor thresholds,              // [T] float32
                std::vector<int64_t> cuts,      // [T + 1]
                std::vector<int64_t> classes,   // [T + 1]
                std::vector<int64_t> keep_num,  // [T + 1]
                int64_t keep_den,               // 0: independent draws
                int64_t unseen_band, int64_t seed, int64_t epoch,
                Tensor weight_class,  // [N] uint8, changed
                int64_t first) {
  check_plan(records, thresholds, cuts, classes, keep_num, keep_den, unseen_band, seed, epoch,
             weight_class, first);
  const int64_t num_samples = records.numel();
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  Tensor block_offsets = torch::stable::new_empty(records, {blocks + 1}, ScalarType::Long);
  const int64_t* all_records = records.const_data_ptr<int64_t>();
  uint8_t* out = weight_class.mutable_data_ptr<uint8_t>();
  prefer_huge_pages(out, static_cast<size_t>(num_samples));

  const Decision rule = make_decision(thresholds.const_data_ptr<float>(), cuts, classes,
                                      unseen_band, seed, epoch, first);
  plan_samples(all_records, num_samples, rule, static_cast<int>(unseen_band), keep_num, keep_den,
               TorchThreads{}, out, block_offsets.mutable_data_ptr<int64_t>());
  return block_offsets;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("plan", TORCH_BOX(&prune_engine::plan_cpu));
}
