// SPDX-License-Identifier: Apache-2.0
// plan_top on a GPU: checked, allocated and launched.
#include "select_scratch.h"

namespace prune_engine {

Tensor plan_top_cuda(Tensor records,  // [N] int64
                     int64_t k, int64_t cut, int64_t seed, int64_t epoch,
                     Tensor weight_class) {  // [N] uint8, changed
  const OnDevice device({records, "records"}, {{weight_class, "weight_class"}});
  check_plan_top(records, k, cut, seed, epoch, weight_class);
  const int64_t num_samples = records.numel();
  check_num_samples(num_samples);
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  Tensor block_offsets = torch::stable::new_empty(records, {blocks + 1}, ScalarType::Long);
  Tensor ranked = torch::stable::new_empty(records, {num_samples}, ScalarType::Long);
  SelectScratch scratch(ranked);
  check_cuda(cuda::launch_plan_top(
                 {records.const_data_ptr<int64_t>(), num_samples, k, static_cast<uint32_t>(cut),
                  static_cast<uint64_t>(seed), static_cast<uint32_t>(epoch),
                  ranked.mutable_data_ptr<int64_t>(), weight_class.mutable_data_ptr<uint8_t>(),
                  block_offsets.mutable_data_ptr<int64_t>()},
                 scratch.args(ranked), device.stream()),
             "plan_top");
  return block_offsets;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("plan_top", TORCH_BOX(&prune_engine::plan_top_cuda));
}
