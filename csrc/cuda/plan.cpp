// SPDX-License-Identifier: Apache-2.0
// plan on a GPU: checked, allocated and launched.
#include <optional>

#include "on_device.h"

namespace prune_engine {

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
    histogram = torch::stable::new_empty(records, {cuda::kHistogramCounts}, ScalarType::Int);
    ties = torch::stable::new_empty(records, {bands * (blocks + 1)}, ScalarType::Long);
    fixed = torch::stable::new_empty(records, {sizeof(cuda::FixedCuts)}, ScalarType::Byte);
    args.scratch = {static_cast<uint32_t*>(histogram->mutable_data_ptr()),
                    ties->mutable_data_ptr<int64_t>(),
                    static_cast<cuda::FixedCuts*>(fixed->mutable_data_ptr())};
  }
  check_cuda(cuda::launch_plan(args, device.stream()), "plan");
  return block_offsets;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("plan", TORCH_BOX(&prune_engine::plan_cuda));
}
