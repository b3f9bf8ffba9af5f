// SPDX-License-Identifier: Apache-2.0
// top on a GPU: checked, allocated and launched.
#include "select_scratch.h"

namespace prune_engine {

Tensor top_cuda(Tensor values,  // [N] float32 scores or int64 records
                int64_t k) {
  const OnDevice device({values, "values"}, {});
  check_top(values, k);
  SelectScratch scratch(values);
  Tensor mask = torch::stable::new_empty(values, {values.numel()}, ScalarType::Byte);
  check_cuda(
      cuda::launch_top(scratch.args(values), k, mask.mutable_data_ptr<uint8_t>(), device.stream()),
      "top");
  return mask;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("top", TORCH_BOX(&prune_engine::top_cuda));
}
