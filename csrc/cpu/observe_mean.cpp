// SPDX-License-Identifier: Apache-2.0
// observe_mean on the CPU: observe's pass, which writes one number for each sample.
#include <optional>

#include "observe.h"

namespace prune_engine {
Tensor observe_mean_cpu(Tensor losses,                // [B] float32
                        Tensor indices,               // [B] int64 | int32
                        std::optional<Tensor> score,  // [B] floating, or none: the loss
                        std::vector<Tensor> tensors,  // of the state, changed
                        bool advance) {
  const Tensor& scored = score.has_value() ? *score : losses;
  check_mean(losses, indices, scored);
  const ScoreState state = make_state(tensors);
  check_epoch(*state.epoch);
  const int64_t size = losses.numel();

  with_index_type(indices.scalar_type(), [&](auto* index) {
    using Index = std::remove_pointer_t<decltype(index)>;
    prefetch_first(state, static_cast<const Index*>(indices.const_data_ptr()), size);
  });
  const auto part = static_cast<float>(1.0 / static_cast<double>(size));  // of no sample: unused
  Tensor shares = fresh_like(losses, size, ScalarType::Float);
  auto* share = static_cast<float*>(shares.mutable_data_ptr());
  with_float_type(scored.scalar_type(), "score", [&](auto* score_type) {
    with_index_type(indices.scalar_type(), [&](auto* index) {
      using Score = std::remove_pointer_t<decltype(score_type)>;
      using Index = std::remove_pointer_t<decltype(index)>;
      const ScoredBatch<Index, Score> batch = {static_cast<const Index*>(indices.const_data_ptr()),
                                               static_cast<const Score*>(scored.const_data_ptr()),
                                               size};
      observe_batch(batch, state, advance,
                    [=](int64_t b, float weight) { share[b] = part * weight; });
    });
  });
  return shares;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("observe_mean", TORCH_BOX(&prune_engine::observe_mean_cpu));
}
