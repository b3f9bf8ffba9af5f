// SPDX-License-Identifier: Apache-2.0
// observe_mean on a GPU: checked, allocated and launched.
#include <optional>

#include "on_device.h"

namespace prune_engine {

Tensor observe_mean_cuda(Tensor losses,                // [B] float32
                         Tensor indices,               // [B] int64 | int32
                         std::optional<Tensor> score,  // [B] floating, or none: the loss
                         std::vector<Tensor> tensors,  // of the state, changed
                         bool advance) {
  const Tensor& scored = score.has_value() ? *score : losses;
  const OnDevice device(records_of(tensors),
                        {{losses, "losses"}, {indices, "indices"}, {scored, "score"}});
  const ScoreState state = state_on(device, tensors);
  check_mean(losses, indices, scored);
  const cuda::Real score_type = real_type(scored.scalar_type(), "score");
  const int64_t size = losses.numel();

  Tensor shares = fresh_like(losses, size, ScalarType::Float);
  const cuda::LossBatch batch = {cuda::Real::kFloat,
                                 nullptr,
                                 score_type,
                                 scored.const_data_ptr(),
                                 indices.scalar_type() == ScalarType::Long,
                                 indices.const_data_ptr(),
                                 size,
                                 shares.mutable_data_ptr(),
                                 nullptr};
  check_cuda(cuda::launch_observe_mean(batch, state, advance, device.stream()), "observe_mean");
  return shares;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("observe_mean", TORCH_BOX(&prune_engine::observe_mean_cuda));
}
