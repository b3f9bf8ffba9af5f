// SPDX-License-Identifier: Apache-2.0
// cross_entropy_observe on the CPU: threads share the rows, each row is read once; the records then
// take the scores as observe's do.
#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>

#include "logits.h"
#include "observe.h"
#include "parallel.h"

namespace prune_engine {
namespace {

// A target that names no class: refused, like an index, before anything is written.
void check_targets(const int64_t* targets, int64_t size, const Labels& labels) {
  for (int64_t b = 0; b < size; ++b) {
    const int64_t target = targets[b];
    STD_TORCH_CHECK(target == labels.ignore_index || (target >= 0 && target < labels.num_classes),
                    "IndexError: targets must be in 0..", labels.num_classes - 1,
                    " or ignore_index, got ", target, " at position ", b);
  }
}

template <typename Logit, typename Index>
void observe_logits(const Logit* logits, const int64_t* targets, const Index* indices, int64_t size,
                    const Labels& labels, const ScoreState& state, bool advance, void* rescaled,
                    float* batch_weights, float* score, void* saved) {
  using Real = typename Accumulator<Logit>::Type;
  auto* losses = static_cast<Real*>(rescaled);
  auto* stats = static_cast<Real*>(saved);
  check_range(indices, size, state.num_samples);
  check_targets(targets, size, labels);
  const int64_t count = labels.num_classes;
  const Smoothing<Real> smoothing = {static_cast<Real>(labels.smoothing), count};
  const bool full = needs_full(labels.smoothing, labels.kind);
  const int64_t epoch = *state.epoch;
  std::atomic<int64_t> saturated = 0;
  TorchThreads()(0, size, row_grain(count), [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t target = targets[b];
      if (target == labels.ignore_index) {  // no loss and no score: the last score stays
        losses[b] = 0;
        score[b] = static_cast<float>(NAN);
        stats[2 * b] = stats[2 * b + 1] = 0;
        continue;
      }
      const Logit* row = logits + b * count;
      const RowStats<Real> found = row_stats(row, labels.class_weight, count, full);
      const Real own = static_cast<Real>(row[target]);
      const Real weight = labels.class_weight ? static_cast<Real>(labels.class_weight[target]) : 1;
      losses[b] = row_loss(found, own, weight, smoothing);
      const Real exact = row_score(found, own, labels.kind, state.records[indices[b]], epoch);
      score[b] = static_cast<float>(exact);
      if (is_finite(exact) && !is_finite(score[b])) ++saturated;
      stats[2 * b] = found.largest;
      stats[2 * b + 1] = row_factor(found, weight, smoothing);
    }
  });
  const ScoredBatch<Index, float> batch = {indices, score, size};
  observe_batch(batch, state, advance, [&](int64_t b, float weight) {
    batch_weights[b] = weight;
    losses[b] = rescale<Real>(losses[b], weight);
  });
  state.counters[kSaturated] += saturated;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_observe_cpu(
    Tensor logits,                       // [B, C] float16 | bfloat16 | float32 | float64
    Tensor targets,                      // [B] int64
    Tensor indices,                      // [B] int64 | int32
    std::optional<Tensor> class_weight,  // [C] float32, or none
    double label_smoothing, int64_t ignore_index, int64_t kind,
    std::vector<Tensor> tensors,  // of the state, changed
    bool advance) {
  const Labels labels =
      check_logits(logits, targets, class_weight, label_smoothing, ignore_index, kind);
  check_indices(indices, targets.numel());
  const ScoreState state = make_state(tensors);
  check_epoch(*state.epoch);
  const int64_t size = targets.numel();

  const ScalarType real = real_dtype(logits);
  Tensor rescaled = fresh_like(logits, size, real);
  Tensor batch_weights = fresh_like(logits, size, ScalarType::Float);
  Tensor score = fresh_like(logits, size, ScalarType::Float);
  Tensor stats = fresh_like(logits, size, real, 2);
  with_float_type(logits.scalar_type(), "logits", [&](auto* logit) {
    with_index_type(indices.scalar_type(), [&](auto* index) {
      using Logit = std::remove_pointer_t<decltype(logit)>;
      using Index = std::remove_pointer_t<decltype(index)>;
      observe_logits(static_cast<const Logit*>(logits.const_data_ptr()),
                     targets.const_data_ptr<int64_t>(), indices.const_data_ptr<Index>(), size,
                     labels, state, advance, rescaled.mutable_data_ptr(),
                     batch_weights.mutable_data_ptr<float>(), score.mutable_data_ptr<float>(),
                     stats.mutable_data_ptr());
    });
  });
  return {rescaled, batch_weights, score, stats};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("cross_entropy_observe", TORCH_BOX(&prune_engine::cross_entropy_observe_cpu));
}
