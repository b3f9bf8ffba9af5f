// SPDX-License-Identifier: Apache-2.0
// activation_std on a GPU: checked, allocated and launched.
#include "moment_tensors.h"

namespace prune_engine {

void activation_std_cuda(std::vector<Tensor> tensors,  // L of any shape
                         Tensor out,                   // [num_batches] float64, changed
                         std::optional<Tensor> slot,   // [1] int64, or none: 0
                         bool unbiased, int64_t sample) {
  check_activation_std(tensors, out, slot, sample);
  const OnDevice device({out, "out"}, {{slot.has_value() ? *slot : out, "slot"}});
  const auto table = activations_of(tensors, device);
  const auto count = static_cast<int64_t>(table.size());
  MomentTensors scratch(out, count);
  Tensor rows = torch::stable::new_empty(out, {count, 3}, ScalarType::Double);
  const cuda::StdTarget target = {out.mutable_data_ptr<double>(),
                                  slot.has_value() ? slot->const_data_ptr<int64_t>() : nullptr,
                                  out.numel(),
                                  rows.mutable_data_ptr<double>(),
                                  static_cast<int>(count),
                                  unbiased};
  check_cuda(
      cuda::launch_activation_std(table.data(), sample, target, scratch.get(), device.stream()),
      "activation_std");
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("activation_std", TORCH_BOX(&prune_engine::activation_std_cuda));
}
