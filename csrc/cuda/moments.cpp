// SPDX-License-Identifier: Apache-2.0
// moments on a GPU: checked, allocated and launched.
#include "moment_tensors.h"

namespace prune_engine {

Tensor moments_cuda(std::vector<Tensor> tensors,  // L of any shape
                    int64_t sample) {
  check_moments(tensors, sample);
  const OnDevice device({tensors[0], "tensors"}, {});
  const auto table = activations_of(tensors, device);
  const auto count = static_cast<int64_t>(table.size());
  MomentTensors scratch(tensors[0], count);
  Tensor rows = torch::stable::new_empty(tensors[0], {count, 3}, ScalarType::Double);
  check_cuda(cuda::launch_moments(table.data(), static_cast<int>(count), sample,
                                  rows.mutable_data_ptr<double>(), scratch.get(), device.stream()),
             "moments");
  return rows;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("moments", TORCH_BOX(&prune_engine::moments_cuda));
}
