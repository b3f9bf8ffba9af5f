// SPDX-License-Identifier: Apache-2.0
// audit on the CPU: one read of the records recomputes the exact sum and compares what was seen
// with what was planned.
#include <mutex>

#include "../check.h"
#include "survey.h"

namespace prune_engine {
namespace {

struct Coverage {
  uint32_t planned_seen, missing, extra;
};

// Also leaves the keys of the block in scratch.
PE_CLONES Coverage compare_block(const int64_t* records, const uint8_t* weight_class, int32_t size,
                                 uint32_t this_epoch, SurveyScratch* scratch) {
  uint32_t* epoch = scratch->group;  // free until the keys are split
  for (int32_t i = 0; i < size; ++i) scratch->key[i] = record_key(records[i]);
  for (int32_t i = 0; i < size; ++i) {
    epoch[i] = static_cast<uint32_t>(static_cast<uint64_t>(records[i]) >> 32);
  }
  uint32_t planned_seen = 0, missing = 0, extra = 0;
  for (int32_t i = 0; i < size; ++i) {
    const uint32_t now = epoch[i] == this_epoch ? 1 : 0;
    const uint32_t planned = weight_class[i] != 0 ? 1 : 0;
    planned_seen += planned & now;
    missing += planned & (now ^ 1);
    extra += (planned ^ 1) & now;
  }
  return {planned_seen, missing, extra};
}

void audit_range(const int64_t* records, const uint8_t* weight_class, int64_t begin, int64_t end,
                 int64_t epoch, int64_t* result) {
  SurveyScratch scratch;
  const auto this_epoch = static_cast<uint32_t>(epoch + 1);
  for_each_survey_block(begin, end, [&](int64_t at, int32_t size) {
    const Coverage found =
        compare_block(records + at, weight_class + at, size, this_epoch, &scratch);
    result[kSumWords] += found.planned_seen;
    result[kSumWords + 1] += found.missing;
    result[kSumWords + 2] += found.extra;
    add_keys(size, &scratch, result);
  });
}

}  // namespace

Tensor audit_cpu(Tensor records,       // [N] int64
                 Tensor weight_class,  // [N] uint8
                 int64_t epoch) {
  check_audit(records, weight_class, epoch);
  const int64_t* all_records = records.const_data_ptr<int64_t>();
  const uint8_t* classes = weight_class.const_data_ptr<uint8_t>();
  Tensor result = torch::stable::new_empty(records, {kAuditWords}, ScalarType::Long);
  int64_t* out = result.mutable_data_ptr<int64_t>();
  std::fill_n(out, kAuditWords, int64_t{0});
  std::mutex guard;
  torch::stable::parallel_for(0, records.numel(), 65536, [&](int64_t begin, int64_t end) {
    int64_t part[kAuditWords] = {};
    audit_range(all_records, classes, begin, end, epoch, part);
    // Integer additions commute: the order of the threads does not show.
    const std::lock_guard<std::mutex> lock(guard);
    for (int k = 0; k < kAuditWords; ++k) out[k] += part[k];
  });
  return result;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("audit", TORCH_BOX(&prune_engine::audit_cpu));
}
