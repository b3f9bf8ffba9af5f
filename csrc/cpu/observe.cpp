// SPDX-License-Identifier: Apache-2.0
// observe on the CPU: one pass over the batch. A batch is small, so one thread does it.
#include <cstddef>
#include <optional>
#include <tuple>

#include "../check.h"
#include "../semantics.h"

namespace prune_engine {
namespace {

constexpr int64_t kPrefetch = 16;  // records are scattered over N; hide that many cache misses

struct Batch {
  const void* losses;
  const void* indices;
  const void* score;  // or null: the loss itself
  int64_t size;
};

struct State {
  int64_t* records;
  int64_t* score_sum;
  int64_t* counters;
  const uint8_t* weight_class;
  const float* weight_table;
  int64_t num_samples;
  int64_t epoch;
};

// Edge case 3, index out of range: refused before anything is written.
template <typename Index>
void check_indices(const Index* indices, int64_t size, int64_t num_samples) {
  uint64_t bad = 0;
  for (int64_t b = 0; b < size; ++b) {
    bad |= static_cast<uint64_t>(static_cast<uint64_t>(static_cast<int64_t>(indices[b])) >=
                                 static_cast<uint64_t>(num_samples));
  }
  if (bad == 0) return;
  for (int64_t b = 0; b < size; ++b) {
    const int64_t index = static_cast<int64_t>(indices[b]);
    STD_TORCH_CHECK(index >= 0 && index < num_samples, "IndexError: indices must be in 0..",
                    num_samples - 1, ", got ", index, " at position ", b);
  }
}

// float32(loss) * weight in one rounding, then one more to the dtype; double stays double.
template <typename Loss>
Loss rescale(Loss loss, float weight) {
  return static_cast<Loss>(static_cast<float>(loss) * weight);
}
template <>
double rescale<double>(double loss, float weight) {
  return loss * static_cast<double>(weight);
}

template <typename Loss, typename Index, typename Score>
void observe_batch(const Batch& batch, const State& state, Loss* rescaled, float* batch_weights) {
  const auto* losses = static_cast<const Loss*>(batch.losses);
  const auto* indices = static_cast<const Index*>(batch.indices);
  const auto* scores = static_cast<const Score*>(batch.score);
  check_indices(indices, batch.size, state.num_samples);
  Limbs added = {0, 0, 0};
  int64_t nonfinite = 0;
  for (int64_t b = 0; b < batch.size; ++b) {
    if (b + kPrefetch < batch.size) {
      const auto ahead = static_cast<ptrdiff_t>(indices[b + kPrefetch]);
      __builtin_prefetch(state.records + ahead, 1);
      __builtin_prefetch(state.weight_class + ahead, 0);
    }
    const auto index = static_cast<ptrdiff_t>(indices[b]);
    const float weight = state.weight_table[state.weight_class[index] & (kNumClasses - 1)];
    batch_weights[b] = weight;
    rescaled[b] = rescale<Loss>(losses[b], weight);
    const float score = static_cast<float>(scores[b]);
    const uint32_t bits = float_bits(score);
    if (!is_finite_bits(bits)) {  // Edge case 2: the last finite score decides
      ++nonfinite;
      continue;
    }
    // Edge case 4, the same sample twice: a max-register does not mind the order.
    const int64_t fresh = make_record(state.epoch, bits_to_key(bits));
    const int64_t old = state.records[index];
    if (fresh <= old) continue;
    state.records[index] = fresh;
    const int64_t code = score_code(score);
    added.high += code_high(code);
    added.low += code_low(code);
    if (old == 0) {
      added.seen += 1;
    } else {
      const int64_t old_code = score_code(key_to_float(record_key(old)));
      added.high -= code_high(old_code);
      added.low -= code_low(old_code);
    }
  }
  state.score_sum[0] += added.high;
  state.score_sum[1] += added.low;
  state.score_sum[2] += added.seen;
  state.counters[0] += batch.size;
  state.counters[1] += nonfinite;
}

// Calls body with a null pointer of the C++ type of a floating dtype.
template <typename Body>
void with_float_type(ScalarType dtype, const char* name, const Body& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return body(static_cast<double*>(nullptr));
    case ScalarType::Half:
      return body(static_cast<torch::headeronly::Half*>(nullptr));
    case ScalarType::BFloat16:
      return body(static_cast<torch::headeronly::BFloat16*>(nullptr));
    default:
      STD_TORCH_CHECK(false, name, " must be float16, bfloat16, float32 or float64");
  }
}

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
