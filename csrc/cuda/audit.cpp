// SPDX-License-Identifier: Apache-2.0
// audit on a GPU: checked, allocated and launched.
#include "on_device.h"

namespace prune_engine {

Tensor audit_cuda(Tensor records,       // [N] int64
                  Tensor weight_class,  // [N] uint8
                  int64_t epoch) {
  const OnDevice device({records, "records"}, {{weight_class, "weight_class"}});
  check_audit(records, weight_class, epoch);
  Tensor result = torch::stable::new_empty(records, {kAuditWords}, ScalarType::Long);
  check_cuda(cuda::launch_audit(records.const_data_ptr<int64_t>(),
                                weight_class.const_data_ptr<uint8_t>(), records.numel(), epoch,
                                result.mutable_data_ptr<int64_t>(), device.stream()),
             "audit");
  return result;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("audit", TORCH_BOX(&prune_engine::audit_cuda));
}
