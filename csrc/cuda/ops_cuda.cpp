// SPDX-License-Identifier: Apache-2.0
// The operators on CUDA tensors: guard, check, allocate, launch on the current stream. Nothing here
// waits for the device, so what only the device knows (an index out of range, an offset that does
// not fit) is handled there and never raised here.
#include <algorithm>
#include <optional>
#include <tuple>

#include "on_device.h"

namespace prune_engine {
namespace {

// Indices are int32 and a grid has one block per 4096 samples.
void check_num_samples(int64_t num_samples) {
  STD_TORCH_CHECK(num_samples <= INT32_MAX, "a device holds at most 2147483647 samples, got ",
                  num_samples);
}

}  // namespace

std::tuple<Tensor, Tensor> observe_cuda(
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
  const OnDevice device({records, "records"}, {{losses, "losses"},
                                               {indices, "indices"},
                                               {scored, "score"},
                                               {score_sum, "score_sum"},
                                               {counters, "counters"},
                                               {weight_class, "weight_class"},
                                               {weight_table, "weight_table"},
                                               {epoch, "epoch"}});
  check_observe(losses, indices, scored, records, score_sum, counters, weight_class, weight_table,
                epoch);
  const cuda::Real loss_type = real_type(losses.scalar_type(), "losses");
  const cuda::Real score_type = real_type(scored.scalar_type(), "score");
  const int64_t size = losses.numel();

  Tensor rescaled = torch::stable::new_empty(losses, {size});
  Tensor batch_weights = torch::stable::new_empty(losses, {size}, ScalarType::Float);
  const cuda::Batch batch = {loss_type,
                             losses.const_data_ptr(),
                             score_type,
                             scored.const_data_ptr(),
                             indices.scalar_type() == ScalarType::Long,
                             indices.const_data_ptr(),
                             size,
                             rescaled.mutable_data_ptr(),
                             batch_weights.mutable_data_ptr<float>()};
  const cuda::State state = {
      records.mutable_data_ptr<int64_t>(),    records.numel(),
      score_sum.mutable_data_ptr<int64_t>(),  counters.mutable_data_ptr<int64_t>(),
      weight_class.const_data_ptr<uint8_t>(), weight_table.const_data_ptr<float>(),
      epoch.const_data_ptr<int64_t>()};
  check_cuda(cuda::launch_observe(batch, state, device.stream()), "observe");
  return {rescaled, batch_weights};
}

Tensor mean_threshold_cuda(Tensor score_sum /* [3] int64 */) {
  const OnDevice device({score_sum, "score_sum"}, {});
  check_mean_threshold(score_sum);
  Tensor threshold = torch::stable::new_empty(score_sum, {1}, ScalarType::Float);
  check_cuda(cuda::launch_mean_threshold(score_sum.const_data_ptr<int64_t>(),
                                         threshold.mutable_data_ptr<float>(), device.stream()),
             "mean_threshold");
  return threshold;
}

Tensor plan_cuda(Tensor records,                 // [N] int64
                 Tensor thresholds,              // [T] float32
                 std::vector<int64_t> cuts,      // [T + 1]
                 std::vector<int64_t> classes,   // [T + 1]
                 std::vector<int64_t> keep_num,  // [T + 1]
                 int64_t keep_den,               // 0: independent draws
                 int64_t unseen_band, int64_t seed, int64_t epoch,
                 Tensor weight_class,  // [N] uint8, changed
                 int64_t first) {
  const OnDevice device({records, "records"},
                        {{thresholds, "thresholds"}, {weight_class, "weight_class"}});
  check_plan(records, thresholds, cuts, classes, keep_num, keep_den, unseen_band, seed, epoch,
             weight_class, first);
  const int64_t num_samples = records.numel();
  check_num_samples(num_samples);
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  const auto bands = static_cast<int64_t>(cuts.size());

  const float unread[kMaxBands - 1] = {};  // the kernels read the thresholds on the device
  cuda::PlanArgs args = {};
  args.records = records.const_data_ptr<int64_t>();
  args.num_samples = num_samples;
  args.thresholds = thresholds.const_data_ptr<float>();
  args.rule = make_decision(unread, cuts, classes, unseen_band, seed, epoch, first);
  args.unseen_band = static_cast<int>(unseen_band);
  std::copy(keep_num.begin(), keep_num.end(), args.shares.num);
  args.shares.den = keep_den;
  args.weight_class = weight_class.mutable_data_ptr<uint8_t>();

  Tensor block_offsets = torch::stable::new_empty(records, {blocks + 1}, ScalarType::Long);
  args.block_offsets = block_offsets.mutable_data_ptr<int64_t>();
  // The scratch may go back to torch's allocator at once: whoever gets it next is on this stream.
  std::optional<Tensor> histogram, ties, fixed;
  if (keep_den > 0) {
    args.rule.draws = true;
    histogram = torch::stable::new_empty(records, {bands * kDraws}, ScalarType::Int);
    ties = torch::stable::new_empty(records, {bands * (blocks + 1)}, ScalarType::Long);
    fixed = torch::stable::new_empty(records, {sizeof(cuda::FixedCuts)}, ScalarType::Byte);
    args.scratch = {static_cast<uint32_t*>(histogram->mutable_data_ptr()),
                    ties->mutable_data_ptr<int64_t>(),
                    static_cast<cuda::FixedCuts*>(fixed->mutable_data_ptr())};
  }
  check_cuda(cuda::launch_plan(args, device.stream()), "plan");
  return block_offsets;
}

Tensor compact_cuda(Tensor weight_class,   // [N] uint8
                    Tensor block_offsets,  // [ceil(N / 4096) + 1] int64
                    int64_t num_kept) {
  const OnDevice device({weight_class, "weight_class"}, {{block_offsets, "block_offsets"}});
  check_compact(weight_class, block_offsets);
  const int64_t num_samples = weight_class.numel();
  check_num_samples(num_samples);
  STD_TORCH_CHECK(num_kept >= 0 && num_kept <= num_samples, "num_kept must be in 0..", num_samples,
                  ", got ", num_kept);
  Tensor kept = torch::stable::new_empty(weight_class, {num_kept}, ScalarType::Int);
  check_cuda(cuda::launch_compact(weight_class.const_data_ptr<uint8_t>(), num_samples,
                                  block_offsets.const_data_ptr<int64_t>(), num_kept,
                                  kept.mutable_data_ptr<int32_t>(), device.stream()),
             "compact");
  return kept;
}

Tensor order_cuda(Tensor kept,                      // [n] int32
                  std::optional<Tensor> positions,  // [M] int64, or none: a range
                  int64_t start, int64_t step, int64_t count, int64_t seed, int64_t epoch) {
  const OnDevice device({kept, "kept"}, {{positions.has_value() ? *positions : kept, "positions"}});
  count = check_order(kept, positions, count, seed, epoch);
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

Tensor shuffle_cuda(Tensor places,  // [M] int64
                    int64_t n, bool inverse, int64_t seed, int64_t epoch) {
  const OnDevice device({places, "places"}, {});
  check_shuffle(places, n, seed, epoch);
  Tensor result = torch::stable::new_empty(places, {places.numel()});
  const Bijection pi = make_bijection(n, seed, epoch);
  check_cuda(cuda::launch_shuffle(places.const_data_ptr<int64_t>(), places.numel(), pi, inverse,
                                  result.mutable_data_ptr<int64_t>(), device.stream()),
             "shuffle");
  return result;
}

Tensor audit_cuda(Tensor records,       // [N] int64
                  Tensor weight_class,  // [N] uint8
                  int64_t epoch) {
  const OnDevice device({records, "records"}, {{weight_class, "weight_class"}});
  check_audit(records, weight_class, epoch);
  Tensor result = torch::stable::new_empty(records, {6}, ScalarType::Long);
  check_cuda(cuda::launch_audit(records.const_data_ptr<int64_t>(),
                                weight_class.const_data_ptr<uint8_t>(), records.numel(), epoch,
                                result.mutable_data_ptr<int64_t>(), device.stream()),
             "audit");
  return result;
}

namespace {

// Arguments of select and top, and the scratch they point to. It may go back to torch's allocator
// at once: whoever gets it next is on this stream.
struct SelectScratch {
  Tensor counts;
  Tensor state;

  explicit SelectScratch(const Tensor& values)
      : counts(torch::stable::new_empty(values, {cuda::kSelectCounts}, ScalarType::Int)),
        state(torch::stable::new_empty(values, {sizeof(cuda::SelectState)}, ScalarType::Byte)) {}

  cuda::SelectArgs args(const Tensor& values) {
    cuda::SelectArgs args = {};
    args.records = values.scalar_type() == ScalarType::Long;
    args.values = values.const_data_ptr();
    args.num_samples = values.numel();
    args.counts = static_cast<uint32_t*>(counts.mutable_data_ptr());
    args.state = static_cast<cuda::SelectState*>(state.mutable_data_ptr());
    return args;
  }
};

}  // namespace

Tensor select_cuda(Tensor values,                 // [N] float32 scores or int64 records
                   std::vector<int64_t> offsets,  // [R]
                   std::vector<int64_t> shares,   // [R]
                   int64_t den) {
  const OnDevice device({values, "values"}, {});
  const std::vector<Rank> ranks = check_select(values, offsets, shares, den);
  SelectScratch scratch(values);
  cuda::SelectArgs args = scratch.args(values);
  args.num_ranks = static_cast<int>(ranks.size());
  std::copy(ranks.begin(), ranks.end(), args.rank);
  args.den = den;
  Tensor result = torch::stable::new_empty(values, {args.num_ranks}, ScalarType::Float);
  args.out = result.mutable_data_ptr<float>();
  check_cuda(cuda::launch_select(args, device.stream()), "select");
  return result;
}

Tensor top_cuda(Tensor values,  // [N] float32 scores or int64 records
                int64_t k) {
  const OnDevice device({values, "values"}, {});
  check_top(values, k);
  SelectScratch scratch(values);
  Tensor mask = torch::stable::new_empty(values, {values.numel()}, ScalarType::Byte);
  check_cuda(
      cuda::launch_top(scratch.args(values), k, mask.mutable_data_ptr<uint8_t>(), device.stream()),
      "top");
  return mask;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("observe", TORCH_BOX(&prune_engine::observe_cuda));
  m.impl("mean_threshold", TORCH_BOX(&prune_engine::mean_threshold_cuda));
  m.impl("plan", TORCH_BOX(&prune_engine::plan_cuda));
  m.impl("compact", TORCH_BOX(&prune_engine::compact_cuda));
  m.impl("order", TORCH_BOX(&prune_engine::order_cuda));
  m.impl("shuffle", TORCH_BOX(&prune_engine::shuffle_cuda));
  m.impl("audit", TORCH_BOX(&prune_engine::audit_cuda));
  m.impl("select", TORCH_BOX(&prune_engine::select_cuda));
  m.impl("top", TORCH_BOX(&prune_engine::top_cuda));
}
