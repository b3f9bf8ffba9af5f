// SPDX-License-Identifier: Apache-2.0
// moments on the CPU: one read of all tensors.
#include "moments.h"

namespace prune_engine {

Tensor moments_cpu(std::vector<Tensor> tensors,  // L of any shape
                   int64_t sample) {
  check_moments(tensors, sample);
  const auto rows = static_cast<int64_t>(tensors.size());
  Tensor result = torch::stable::new_empty(tensors[0], {rows, 3}, ScalarType::Double);
  const std::vector<Moments> found = all_moments<ReadLanes>(elements_of(tensors), sample);
  std::memcpy(result.mutable_data_ptr(), found.data(), found.size() * sizeof(Moments));
  return result;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("moments", TORCH_BOX(&prune_engine::moments_cpu));
}
