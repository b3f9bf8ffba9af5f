// SPDX-License-Identifier: Apache-2.0
// solve_levels on the CPU: bisection over the cells that have samples.
#include <tuple>
#include <vector>

#include "../check.h"
#include "../levels.h"

namespace prune_engine {
namespace {

struct Filled {
  int64_t cell, count;
};

// 65536 times the number of samples kept on average.
int64_t expected_of(const std::vector<Filled>& cells, int64_t unseen, int64_t theta,
                    int64_t least) {
  int64_t sum = kDraws * unseen;
  for (const Filled& filled : cells) sum += filled.count * keep_of(theta, filled.cell, least);
  return sum;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> solve_levels_cpu(Tensor counts,  // [4096] int64
                                                            int64_t target, int64_t least) {
  check_solve_levels(counts, target, least);
  const int64_t* count = counts.const_data_ptr<int64_t>();
  std::vector<Filled> cells;
  for (int bin = 0; bin < kScoreCells; ++bin) {
    if (count[bin] != 0) cells.push_back({kFirstCell + bin, count[bin]});
  }
  int64_t low = kLowestTheta, high = kHighestTheta;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (expected_of(cells, count[kUnseenCell], middle, least) <= kDraws * target) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  int64_t top = first_top(low);
  while (!is_top(low, top)) ++top;

  Tensor tops = torch::stable::new_empty(counts, {1}, ScalarType::Int);
  Tensor cuts = torch::stable::new_empty(counts, {kNumClasses}, ScalarType::Int);
  Tensor weights = torch::stable::new_empty(counts, {kNumClasses}, ScalarType::Float);
  Tensor solution = torch::stable::new_empty(counts, {2}, ScalarType::Long);
  tops.mutable_data_ptr<int32_t>()[0] = static_cast<int32_t>(top);
  for (int k = 0; k < kNumClasses; ++k) {
    const int64_t keep = level_keep(low, top, k, least);
    cuts.mutable_data_ptr<int32_t>()[k] = static_cast<int32_t>(kDraws - keep);
    weights.mutable_data_ptr<float>()[k] = level_weight(keep);
  }
  solution.mutable_data_ptr<int64_t>()[0] = low;
  solution.mutable_data_ptr<int64_t>()[1] = expected_of(cells, count[kUnseenCell], low, least);
  return {tops, cuts, weights, solution};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("solve_levels", TORCH_BOX(&prune_engine::solve_levels_cpu));
}
