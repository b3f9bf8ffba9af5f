// SPDX-License-Identifier: Apache-2.0
// activation_std on the CPU: one read of all tensors, one number.
#include "moments.h"

namespace prune_engine {

void activation_std_cpu(std::vector<Tensor> tensors,  // L of any shape
                        Tensor out,                   // [num_batches] float64, changed
                        std::optional<Tensor> slot,   // [1] int64, or none: 0
                        bool unbiased, int64_t sample) {
  check_activation_std(tensors, out, slot, sample);
  const int64_t place = slot.has_value() ? *slot->const_data_ptr<int64_t>() : 0;
  STD_TORCH_CHECK(place >= 0 && place < out.numel(), "IndexError: slot must be in 0..",
                  out.numel() - 1, ", got ", place);
  double sum = 0.0;
  for (const Moments& m : all_moments<ReadLanes>(elements_of(tensors), sample)) {
    sum += std_of(m, unbiased);
  }
  out.mutable_data_ptr<double>()[place] = sum / static_cast<double>(tensors.size());
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("activation_std", TORCH_BOX(&prune_engine::activation_std_cpu));
}
