// SPDX-License-Identifier: Apache-2.0
// mean_threshold on a GPU: checked, allocated and launched.
#include "on_device.h"

namespace prune_engine {

Tensor mean_threshold_cuda(Tensor score_sum /* [10] int64 */) {
  const OnDevice device({score_sum, "score_sum"}, {});
  check_score_sum(score_sum);
  Tensor threshold = torch::stable::new_empty(score_sum, {1}, ScalarType::Float);
  check_cuda(cuda::launch_mean_threshold(score_sum.const_data_ptr<int64_t>(),
                                         threshold.mutable_data_ptr<float>(), device.stream()),
             "mean_threshold");
  return threshold;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("mean_threshold", TORCH_BOX(&prune_engine::mean_threshold_cuda));
}
