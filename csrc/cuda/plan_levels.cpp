// SPDX-License-Identifier: Apache-2.0
// plan_levels on a GPU: checked, allocated and launched.
#include <optional>

#include "on_device.h"

namespace prune_engine {

Tensor plan_levels_cuda(Tensor records,  // [N] int64
                        Tensor top,      // [1] int32
                        Tensor cut,      // [256] int32
                        int64_t seed, int64_t epoch,
                        Tensor weight_class,  // [N] uint8, changed
                        int64_t first,
                        std::optional<Tensor> unseen) {  // [1] int32, or none: top
  const Tensor never = unseen.value_or(top);
  const OnDevice device(
      {records, "records"},
      {{top, "top"}, {never, "unseen"}, {cut, "cut"}, {weight_class, "weight_class"}});
  check_plan_levels(records, top, never, cut, seed, epoch, weight_class, first);
  const int64_t num_samples = records.numel();
  check_num_samples(num_samples);
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  Tensor block_offsets = torch::stable::new_empty(records, {blocks + 1}, ScalarType::Long);
  const cuda::LevelPlanArgs args = {records.const_data_ptr<int64_t>(),
                                    num_samples,
                                    top.const_data_ptr<int32_t>(),
                                    never.const_data_ptr<int32_t>(),
                                    cut.const_data_ptr<int32_t>(),
                                    static_cast<uint64_t>(seed),
                                    static_cast<uint32_t>(epoch),
                                    first,
                                    weight_class.mutable_data_ptr<uint8_t>(),
                                    block_offsets.mutable_data_ptr<int64_t>()};
  check_cuda(cuda::launch_plan_levels(args, device.stream()), "plan_levels");
  return block_offsets;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("plan_levels", TORCH_BOX(&prune_engine::plan_levels_cuda));
}
