// SPDX-License-Identifier: Apache-2.0
// draw on a GPU: checked, allocated and launched.
#include "on_device.h"

namespace prune_engine {

Tensor draw_cuda(Tensor indices,  // [M] int64
                 int64_t seed, int64_t epoch, int64_t stream) {
  const OnDevice device({indices, "indices"}, {});
  check_draw(indices, seed, epoch, stream);
  Tensor result = torch::stable::new_empty(indices, {indices.numel()});
  check_cuda(cuda::launch_draw(indices.const_data_ptr<int64_t>(), indices.numel(), seed, epoch,
                               stream, result.mutable_data_ptr<int64_t>(), device.stream()),
             "draw");
  return result;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("draw", TORCH_BOX(&prune_engine::draw_cuda));
}
