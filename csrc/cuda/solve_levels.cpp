// SPDX-License-Identifier: Apache-2.0
// solve_levels on a GPU: checked, allocated and launched.
#include <tuple>

#include "on_device.h"

namespace prune_engine {

std::tuple<Tensor, Tensor, Tensor, Tensor> solve_levels_cuda(Tensor counts,  // [4096] int64
                                                             int64_t target, int64_t least) {
  const OnDevice device({counts, "counts"}, {});
  check_solve_levels(counts, target, least);
  Tensor top = torch::stable::new_empty(counts, {1}, ScalarType::Int);
  Tensor cut = torch::stable::new_empty(counts, {kNumClasses}, ScalarType::Int);
  Tensor weights = torch::stable::new_empty(counts, {kNumClasses}, ScalarType::Float);
  Tensor solution = torch::stable::new_empty(counts, {2}, ScalarType::Long);
  const cuda::LevelTables levels = {
      top.mutable_data_ptr<int32_t>(), cut.mutable_data_ptr<int32_t>(),
      weights.mutable_data_ptr<float>(), solution.mutable_data_ptr<int64_t>()};
  check_cuda(cuda::launch_solve_levels(counts.const_data_ptr<int64_t>(), target, least, levels,
                                       device.stream()),
             "solve_levels");
  return {top, cut, weights, solution};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("solve_levels", TORCH_BOX(&prune_engine::solve_levels_cuda));
}
