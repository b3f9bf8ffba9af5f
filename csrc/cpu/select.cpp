// SPDX-License-Identifier: Apache-2.0
// select on the CPU: three reads of the samples, whatever they are (select.h).
#include "select.h"

#include "../check.h"
#include "parallel.h"

namespace prune_engine {

Tensor select_cpu(Tensor values,                 // [N] float32 scores or int64 records
                  std::vector<int64_t> offsets,  // [R]
                  std::vector<int64_t> shares,   // [R]
                  int64_t den) {
  const std::vector<Rank> ranks = check_select(values, offsets, shares, den);
  const int64_t num_samples = values.numel();
  Tensor result =
      torch::stable::new_empty(values, {static_cast<int64_t>(ranks.size())}, ScalarType::Float);
  std::vector<Found> found(ranks.size());
  const int64_t seen = values.scalar_type() == ScalarType::Long
                           ? select_samples(values.const_data_ptr<int64_t>(), num_samples, ranks,
                                            den, TorchThreads{}, &found)
                           : select_samples(values.const_data_ptr<float>(), num_samples, ranks, den,
                                            TorchThreads{}, &found);
  float* out = result.mutable_data_ptr<float>();
  for (size_t r = 0; r < ranks.size(); ++r) {
    out[r] = seen == 0 ? nothing_selected() : key_to_float(found[r].key);
  }
  return result;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("select", TORCH_BOX(&prune_engine::select_cpu));
}
