// SPDX-License-Identifier: Apache-2.0
// cross_entropy_grad on a GPU: checked, allocated and launched.
#include <optional>

#include "on_device.h"

namespace prune_engine {

Tensor cross_entropy_grad_cuda(Tensor grad,     // [B] float32, float64 for float64 logits
                               Tensor logits,   // [B, C] float16 | bfloat16 | float32 | float64
                               Tensor targets,  // [B] int64
                               std::optional<Tensor> class_weight,  // [C] float32, or none
                               double label_smoothing, int64_t ignore_index,
                               Tensor batch_weights,  // [B] float32
                               Tensor stats) {        // [B, 2] in the dtype of grad
  const OnDevice device({logits, "logits"},
                        {{grad, "grad"},
                         {targets, "targets"},
                         {class_weight.has_value() ? *class_weight : logits, "class_weight"},
                         {batch_weights, "batch_weights"},
                         {stats, "stats"}});
  const Labels labels =
      check_logits(logits, targets, class_weight, label_smoothing, ignore_index, 0);
  check_gradient(grad, logits, batch_weights, stats);
  const int64_t size = targets.numel();
  Tensor made = torch::stable::new_empty(logits, {size, labels.num_classes});
  const cuda::GradientBatch batch = {real_type(logits.scalar_type(), "logits"),
                                     grad.const_data_ptr(),
                                     logits.const_data_ptr(),
                                     targets.const_data_ptr<int64_t>(),
                                     size,
                                     labels,
                                     batch_weights.const_data_ptr<float>(),
                                     stats.const_data_ptr(),
                                     made.mutable_data_ptr()};
  check_cuda(cuda::launch_cross_entropy_grad(batch, device.stream()), "cross_entropy_grad");
  return made;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("cross_entropy_grad", TORCH_BOX(&prune_engine::cross_entropy_grad_cuda));
}
