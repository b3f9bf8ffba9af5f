// SPDX-License-Identifier: Apache-2.0
// compact on the CPU: blocks know where their kept samples go, so they are written independently.
#include "compact.h"

#include "../check.h"
#include "memory.h"
#include "parallel.h"

namespace prune_engine {

Tensor compact_cpu(Tensor weight_class,   // [N] uint8
                   Tensor block_offsets,  // [ceil(N / 4096) + 1] int64
                   int64_t num_kept) {
  check_compact(weight_class, block_offsets);
  const int64_t num_samples = weight_class.numel();
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  const int64_t* offsets = block_offsets.const_data_ptr<int64_t>();
  STD_TORCH_CHECK(offsets[0] == 0 && offsets[blocks] == num_kept, "num_kept must be ",
                  offsets[blocks], ", the last block offset, got ", num_kept);
  Tensor kept = torch::stable::new_empty(weight_class, {num_kept}, ScalarType::Int);
  int32_t* out = kept.mutable_data_ptr<int32_t>();
  prefer_huge_pages(out, static_cast<size_t>(num_kept) * sizeof(int32_t));
  const uint8_t* classes = weight_class.const_data_ptr<uint8_t>();
  const bool consistent =
      compact_samples(classes, num_samples, offsets, num_kept, TorchThreads{}, out);
  STD_TORCH_CHECK(consistent, "block_offsets must be those that plan returned with weight_class");
  return kept;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("compact", TORCH_BOX(&prune_engine::compact_cpu));
}
