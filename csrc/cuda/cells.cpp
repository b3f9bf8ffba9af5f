// SPDX-License-Identifier: Apache-2.0
// cells on a GPU: checked, allocated and launched.
#include "on_device.h"

namespace prune_engine {

Tensor cells_cuda(Tensor records /* [N] int64 */) {
  const OnDevice device({records, "records"}, {});
  check_records(records);
  check_num_samples(records.numel());
  Tensor counts = torch::stable::new_empty(records, {kCells}, ScalarType::Long);
  check_cuda(cuda::launch_cells(records.const_data_ptr<int64_t>(), records.numel(),
                                counts.mutable_data_ptr<int64_t>(), device.stream()),
             "cells");
  return counts;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("cells", TORCH_BOX(&prune_engine::cells_cuda));
}
