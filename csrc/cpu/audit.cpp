// SPDX-License-Identifier: Apache-2.0
// audit on the CPU: one read of the records recomputes the exact sum and compares what was seen
// with what was planned.
#include <cstring>
#include <mutex>

#include "../check.h"
#include "dispatch.h"

namespace prune_engine {
namespace {

struct Audit {
  Limbs sum;
  int64_t planned_seen;
  int64_t missing;
  int64_t extra;
};

PE_CLONES void audit_range(const int64_t* records, const uint8_t* weight_class, int64_t begin,
                           int64_t end, int64_t epoch, Audit* out) {
  const auto this_epoch = static_cast<uint64_t>(epoch + 1);
  uint64_t high = 0, low = 0, seen = 0, planned_seen = 0, missing = 0, extra = 0;
  for (int64_t i = begin; i < end; ++i) {
    const auto record = static_cast<uint64_t>(records[i]);
    const uint64_t is_seen = record != 0 ? 1 : 0;
    const uint64_t now = (record >> 32) == this_epoch ? 1 : 0;
    const uint64_t planned = weight_class[i] != 0 ? 1 : 0;
    const uint64_t code = code_of_bits(bits_of_key(record & 0xffffffffu)) & (0 - is_seen);
    high += (code >> 32) | ((0 - (code >> 63)) << 32);  // a signed shift
    low += code & 0xffffffffu;
    seen += is_seen;
    planned_seen += planned & now;
    missing += planned & (now ^ 1);
    extra += (planned ^ 1) & now;
  }
  *out = {{int64_t(high), int64_t(low), int64_t(seen)},
          int64_t(planned_seen),
          int64_t(missing),
          int64_t(extra)};
}

}  // namespace

Tensor audit_cpu(Tensor records,       // [N] int64
                 Tensor weight_class,  // [N] uint8
                 int64_t epoch) {
  check_audit(records, weight_class, epoch);
  const int64_t* all_records = records.const_data_ptr<int64_t>();
  const uint8_t* classes = weight_class.const_data_ptr<uint8_t>();
  Tensor result = torch::stable::new_empty(records, {6}, ScalarType::Long);
  int64_t* out = result.mutable_data_ptr<int64_t>();
  for (int k = 0; k < 6; ++k) out[k] = 0;
  std::mutex guard;
  torch::stable::parallel_for(0, records.numel(), 65536, [&](int64_t begin, int64_t end) {
    Audit part;
    audit_range(all_records, classes, begin, end, epoch, &part);
    // Integer additions commute: the order of the threads does not show.
    const std::lock_guard<std::mutex> lock(guard);
    out[0] += part.sum.high;
    out[1] += part.sum.low;
    out[2] += part.sum.seen;
    out[3] += part.planned_seen;
    out[4] += part.missing;
    out[5] += part.extra;
  });
  return result;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("audit", TORCH_BOX(&prune_engine::audit_cpu));
}
