// SPDX-License-Identifier: Apache-2.0
// compact on a GPU: checked, allocated and launched.
#include "on_device.h"

namespace prune_engine {

Tensor compact_cuda(Tensor weight_class,   // [N] uint8
                    Tensor block_offsets,  // [ceil(N / 4096) + 1] int64
                    int64_t num_kept) {
  const OnDevice device({weight_class, "weight_class"}, {{block_offsets, "block_offsets"}});
  check_compact(weight_class, block_offsets);
  const int64_t num_samples = weight_class.numel();
  check_num_samples(num_samples);
  STD_TORCH_CHECK(num_kept >= 0 && num_kept <= num_samples, "num_kept must be in 0..", num_samples,
                  ", got ", num_kept);
  Tensor kept = torch::stable::new_empty(weight_class, {num_kept}, ScalarType::Int);
  check_cuda(cuda::launch_compact(weight_class.const_data_ptr<uint8_t>(), num_samples,
                                  block_offsets.const_data_ptr<int64_t>(), num_kept,
                                  kept.mutable_data_ptr<int32_t>(), device.stream()),
             "compact");
  return kept;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("compact", TORCH_BOX(&prune_engine::compact_cuda));
}
