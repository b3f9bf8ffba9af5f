// SPDX-License-Identifier: Apache-2.0
// plan on the CPU: one pass over the records, two with fixed counts (plan.h).
#include "plan.h"

#include "../check.h"
#include "memory.h"
#include "parallel.h"

namespace prune_engine {
namespace {

void check_rule(const Tensor& thresholds, const std::vector<int64_t>& cuts,
                const std::vector<int64_t>& classes, const std::vector<int64_t>& keep_num,
                int64_t keep_den, int64_t unseen_band) {
  check_vector(thresholds, "thresholds", ScalarType::Float, "float32");
  const auto bands = static_cast<size_t>(thresholds.numel() + 1);
  STD_TORCH_CHECK(bands <= kMaxBands, "thresholds must have at most ", kMaxBands - 1,
                  " elements, got ", thresholds.numel());
  STD_TORCH_CHECK(cuts.size() == bands && classes.size() == bands && keep_num.size() == bands,
                  "cuts, classes and keep_num must have ", bands, " elements");
  STD_TORCH_CHECK(keep_den >= 0 && keep_den <= INT32_MAX, "keep_den must be in 0..2147483647, got ",
                  keep_den);
  STD_TORCH_CHECK(unseen_band >= -1 && unseen_band < static_cast<int64_t>(bands),
                  "unseen_band must be in -1..", bands - 1, ", got ", unseen_band);
  for (size_t band = 0; band < bands; ++band) {
    STD_TORCH_CHECK(cuts[band] >= 0 && cuts[band] < kCutAll, "cuts must be in 0..65535, got ",
                    cuts[band]);
    STD_TORCH_CHECK(classes[band] >= 1 && classes[band] < kNumClasses,
                    "classes must be in 1..7, got ", classes[band]);
    STD_TORCH_CHECK(keep_num[band] >= 0 && (keep_den == 0 || keep_num[band] <= keep_den),
                    "keep_num must be in 0..keep_den, got ", keep_num[band]);
  }
}

}  // namespace

Tensor plan_cpu(Tensor records,                 // [N] int64
                Tensor thresholds,              // [T] float32
                std::vector<int64_t> cuts,      // [T + 1]
                std::vector<int64_t> classes,   // [T + 1]
                std::vector<int64_t> keep_num,  // [T + 1]
                int64_t keep_den,               // 0: independent draws
                int64_t unseen_band, int64_t seed, int64_t epoch,
                Tensor weight_class) {  // [N] uint8, changed
  check_vector(records, "records", ScalarType::Long, "int64");
  check_rule(thresholds, cuts, classes, keep_num, keep_den, unseen_band);
  check_seed(seed);
  check_epoch(epoch);
  const int64_t num_samples = records.numel();
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  check_vector(weight_class, "weight_class", ScalarType::Byte, "uint8");
  check_size(weight_class, "weight_class", num_samples);
  Tensor block_offsets = torch::stable::new_empty(records, {blocks + 1}, ScalarType::Long);
  const int64_t* all_records = records.const_data_ptr<int64_t>();
  uint8_t* out = weight_class.mutable_data_ptr<uint8_t>();
  prefer_huge_pages(out, static_cast<size_t>(num_samples));

  const Decision rule =
      make_decision(thresholds.const_data_ptr<float>(), cuts, classes, unseen_band, seed, epoch);
  plan_samples(all_records, num_samples, rule, static_cast<int>(unseen_band), keep_num, keep_den,
               TorchThreads{}, out, block_offsets.mutable_data_ptr<int64_t>());
  return block_offsets;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("plan", TORCH_BOX(&prune_engine::plan_cpu));
}
