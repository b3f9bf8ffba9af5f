// SPDX-License-Identifier: Apache-2.0
// observe on a GPU: checked, allocated and launched.
#include <optional>
#include <tuple>

#include "on_device.h"

namespace prune_engine {

std::tuple<Tensor, Tensor> observe_cuda(
    Tensor losses,                // [B] float16 | bfloat16 | float32 | float64
    Tensor indices,               // [B] int64 | int32
    std::optional<Tensor> score,  // [B] floating, or none: the loss
    std::vector<Tensor> tensors,  // of the state, changed
    bool advance) {
  const Tensor& scored = score.has_value() ? *score : losses;
  const OnDevice device(records_of(tensors),
                        {{losses, "losses"}, {indices, "indices"}, {scored, "score"}});
  const ScoreState state = state_on(device, tensors);
  check_losses(losses, indices, scored);
  const cuda::Real loss_type = real_type(losses.scalar_type(), "losses");
  const cuda::Real score_type = real_type(scored.scalar_type(), "score");
  const int64_t size = losses.numel();

  Tensor rescaled = fresh_like(losses, size, losses.scalar_type());
  Tensor batch_weights = fresh_like(losses, size, ScalarType::Float);
  const cuda::LossBatch batch = {loss_type,
                                 losses.const_data_ptr(),
                                 score_type,
                                 scored.const_data_ptr(),
                                 indices.scalar_type() == ScalarType::Long,
                                 indices.const_data_ptr(),
                                 size,
                                 rescaled.mutable_data_ptr(),
                                 batch_weights.mutable_data_ptr<float>()};
  check_cuda(cuda::launch_observe(batch, state, advance, device.stream()), "observe");
  return {rescaled, batch_weights};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("observe", TORCH_BOX(&prune_engine::observe_cuda));
}
