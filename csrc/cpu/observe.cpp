// SPDX-License-Identifier: Apache-2.0
// observe on the CPU: one pass over the batch. A batch is small, so one thread does it.
#include "observe.h"

#include <optional>
#include <tuple>

namespace prune_engine {
std::tuple<Tensor, Tensor> observe_cpu(
    Tensor losses,                // [B] float16 | bfloat16 | float32 | float64
    Tensor indices,               // [B] int64 | int32
    std::optional<Tensor> score,  // [B] floating, or none: the loss
    std::vector<Tensor> tensors,  // of the state, changed
    bool advance) {
  const Tensor& scored = score.has_value() ? *score : losses;
  check_losses(losses, indices, scored);
  const ScoreState state = make_state(tensors);
  check_epoch(*state.epoch);
  const int64_t size = losses.numel();

  with_index_type(indices.scalar_type(), [&](auto* index) {
    using Index = std::remove_pointer_t<decltype(index)>;
    prefetch_first(state, static_cast<const Index*>(indices.const_data_ptr()), size);
  });
  const ScalarType dtype = losses.scalar_type();
  Tensor rescaled = fresh_like(losses, size, dtype);
  Tensor batch_weights = fresh_like(losses, size, ScalarType::Float);
  auto* weights = static_cast<float*>(batch_weights.mutable_data_ptr());
  with_float_type(dtype, "losses", [&](auto* loss) {
    with_float_type(scored.scalar_type(), "score", [&](auto* score_type) {
      with_index_type(indices.scalar_type(), [&](auto* index) {
        using Loss = std::remove_pointer_t<decltype(loss)>;
        using Score = std::remove_pointer_t<decltype(score_type)>;
        using Index = std::remove_pointer_t<decltype(index)>;
        const ScoredBatch<Index, Score> batch = {
            static_cast<const Index*>(indices.const_data_ptr()),
            static_cast<const Score*>(scored.const_data_ptr()), size};
        const auto* given = static_cast<const Loss*>(losses.const_data_ptr());
        auto* weighed = static_cast<Loss*>(rescaled.mutable_data_ptr());
        observe_batch(batch, state, advance, [&](int64_t b, float weight) {
          weights[b] = weight;
          weighed[b] = rescale<Loss>(given[b], weight);
        });
      });
    });
  });
  return {rescaled, batch_weights};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("observe", TORCH_BOX(&prune_engine::observe_cpu));
}
