// SPDX-License-Identifier: Apache-2.0
// order on a GPU: checked, allocated and launched.
#include <optional>

#include "on_device.h"

namespace prune_engine {

Tensor order_cuda(Tensor kept,                      // [n] int32
                  std::optional<Tensor> positions,  // [M] int64, or none: a range
                  int64_t start, int64_t step, int64_t count, int64_t seed, int64_t epoch) {
  const OnDevice device({kept, "kept"}, {{positions.has_value() ? *positions : kept, "positions"}});
  count = check_order(kept, positions, count, seed, epoch, start, step);
  const int64_t n = kept.numel();
  if (!positions.has_value() && count > 0) {
    // Both ends decide. Only here are the products known not to overflow: n is below 2^31.
    const bool small = count <= n && step > -n && step < n;
    const bool inside =
        count == 1 || step == 0 ||
        (small && start + (count - 1) * step >= 0 && start + (count - 1) * step < n);
    STD_TORCH_CHECK(start >= 0 && start < n && inside, "IndexError: positions must be in 0..",
                    n - 1);
  }
  Tensor samples = torch::stable::new_empty(kept, {count});
  const Positions wanted = {positions.has_value() ? positions->const_data_ptr<int64_t>() : nullptr,
                            start, step, count};
  const Bijection pi = make_bijection(n, seed, epoch);
  check_cuda(cuda::launch_order(kept.const_data_ptr<int32_t>(), pi, wanted,
                                samples.mutable_data_ptr<int32_t>(), device.stream()),
             "order");
  return samples;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("order", TORCH_BOX(&prune_engine::order_cuda));
}
