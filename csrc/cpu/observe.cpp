// SPDX-License-Identifier: Apache-2.0
// observe on the CPU: one pass over the batch. A batch is small, so one thread does it.
#include "observe.h"

#include <optional>
#include <tuple>

namespace prune_engine {
namespace {

template <typename Loss, typename Score>
void observe_indices(ScalarType index_dtype, const Batch& batch, const State& state, Loss* rescaled,
                     float* batch_weights) {
  if (index_dtype == ScalarType::Long) {
    observe_batch<Loss, int64_t, Score>(batch, state, rescaled, batch_weights);
  } else {
    observe_batch<Loss, int32_t, Score>(batch, state, rescaled, batch_weights);
  }
}

}  // namespace

std::tuple<Tensor, Tensor> observe_cpu(
    Tensor losses,                // [B] float16 | bfloat16 | float32 | float64
    Tensor indices,               // [B] int64 | int32
    std::optional<Tensor> score,  // [B] floating, or none: the loss
    Tensor records,               // [N] int64, changed
    Tensor score_sum,             // [3] int64, changed
    Tensor counters,              // [4] int64, changed
    Tensor weight_class,          // [N] uint8
    Tensor weight_table,          // [8] float32
    Tensor epoch) {               // [1] int64
  const Tensor& scored = score.has_value() ? *score : losses;
  check_observe(losses, indices, scored, records, score_sum, counters, weight_class, weight_table,
                epoch);
  const int64_t current = *epoch.const_data_ptr<int64_t>();
  check_epoch(current);
  const ScalarType index_dtype = indices.scalar_type();
  const int64_t batch_size = losses.numel();

  Tensor rescaled = torch::stable::new_empty(losses, {batch_size});
  Tensor batch_weights = torch::stable::new_empty(losses, {batch_size}, ScalarType::Float);
  const Batch batch = {losses.const_data_ptr(), indices.const_data_ptr(), scored.const_data_ptr(),
                       batch_size};
  const State state = {records.mutable_data_ptr<int64_t>(),
                       score_sum.mutable_data_ptr<int64_t>(),
                       counters.mutable_data_ptr<int64_t>(),
                       weight_class.const_data_ptr<uint8_t>(),
                       weight_table.const_data_ptr<float>(),
                       records.numel(),
                       current};
  float* weights = batch_weights.mutable_data_ptr<float>();
  with_float_type(losses.scalar_type(), "losses", [&](auto* loss_type) {
    using Loss = std::remove_pointer_t<decltype(loss_type)>;
    auto* out = static_cast<Loss*>(rescaled.mutable_data_ptr());
    with_float_type(scored.scalar_type(), "score", [&](auto* score_type) {
      using Score = std::remove_pointer_t<decltype(score_type)>;
      observe_indices<Loss, Score>(index_dtype, batch, state, out, weights);
    });
  });
  return {rescaled, batch_weights};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("observe", TORCH_BOX(&prune_engine::observe_cpu));
}
