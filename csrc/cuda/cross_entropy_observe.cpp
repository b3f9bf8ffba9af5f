// SPDX-License-Identifier: Apache-2.0
// cross_entropy_observe on a GPU: checked, allocated and launched.
#include <optional>
#include <tuple>

#include "on_device.h"

namespace prune_engine {

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_observe_cuda(
    Tensor logits,                       // [B, C] float16 | bfloat16 | float32 | float64
    Tensor targets,                      // [B] int64
    Tensor indices,                      // [B] int64 | int32
    std::optional<Tensor> class_weight,  // [C] float32, or none
    double label_smoothing, int64_t ignore_index, int64_t kind,
    std::vector<Tensor> tensors,  // of the state, changed
    bool advance) {
  const OnDevice device(records_of(tensors),
                        {{logits, "logits"},
                         {targets, "targets"},
                         {indices, "indices"},
                         {class_weight.has_value() ? *class_weight : logits, "class_weight"}});
  const ScoreState state = state_on(device, tensors);
  const Labels labels =
      check_logits(logits, targets, class_weight, label_smoothing, ignore_index, kind);
  check_indices(indices, targets.numel());
  const int64_t size = targets.numel();
  const ScalarType real = real_dtype(logits);
  Tensor rescaled = fresh_like(logits, size, real);
  Tensor batch_weights = fresh_like(logits, size, ScalarType::Float);
  Tensor score = fresh_like(logits, size, ScalarType::Float);
  Tensor stats = fresh_like(logits, size, real, 2);
  const cuda::LogitBatch batch = {real_type(logits.scalar_type(), "logits"),
                                  logits.const_data_ptr(),
                                  targets.const_data_ptr<int64_t>(),
                                  indices.scalar_type() == ScalarType::Long,
                                  indices.const_data_ptr(),
                                  size,
                                  labels,
                                  rescaled.mutable_data_ptr(),
                                  batch_weights.mutable_data_ptr<float>(),
                                  score.mutable_data_ptr<float>(),
                                  stats.mutable_data_ptr()};
  check_cuda(cuda::launch_cross_entropy_observe(batch, state, advance, device.stream()),
             "cross_entropy_observe");
  return {rescaled, batch_weights, score, stats};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("cross_entropy_observe", TORCH_BOX(&prune_engine::cross_entropy_observe_cuda));
}
