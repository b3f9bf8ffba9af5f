// SPDX-License-Identifier: Apache-2.0
// mean_threshold on the CPU: O(1), whatever N.
#include "../check.h"
#include "../exact_sum.h"

namespace prune_engine {

Tensor mean_threshold_cpu(Tensor score_sum /* [10] int64 */) {
  check_score_sum(score_sum);
  Tensor threshold = torch::stable::new_empty(score_sum, {1}, ScalarType::Float);
  threshold.mutable_data_ptr<float>()[0] = mean_threshold(score_sum.const_data_ptr<int64_t>());
  return threshold;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("mean_threshold", TORCH_BOX(&prune_engine::mean_threshold_cpu));
}
