// SPDX-License-Identifier: Apache-2.0
// order on the CPU: the samples at given positions of an epoch (order.h).
#include "order.h"

#include <optional>

#include "../check.h"
#include "memory.h"
#include "parallel.h"

namespace prune_engine {

Tensor order_cpu(Tensor kept,                      // [n] int32
                 std::optional<Tensor> positions,  // [M] int64, or none: a range
                 int64_t start, int64_t step, int64_t count, int64_t seed, int64_t epoch) {
  count = check_order(kept, positions, count, seed, epoch, start, step);
  const int64_t n = kept.numel();
  Tensor samples = torch::stable::new_empty(kept, {count});
  if (count == 0) return samples;
  const Positions wanted = {positions.has_value() ? positions->const_data_ptr<int64_t>() : nullptr,
                            start, step, count};
  const int32_t* list = kept.const_data_ptr<int32_t>();
  int32_t* out = samples.mutable_data_ptr<int32_t>();
  prefer_huge_pages(out, static_cast<size_t>(count) * sizeof(int32_t));
  const bool valid = order_samples(list, n, wanted, seed, epoch, TorchThreads{}, out);
  STD_TORCH_CHECK(valid, "IndexError: positions must be in 0..", n - 1);
  return samples;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("order", TORCH_BOX(&prune_engine::order_cpu));
}
