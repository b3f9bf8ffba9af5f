// SPDX-License-Identifier: Apache-2.0
// select on a GPU: checked, allocated and launched.
#include <algorithm>

#include "select_scratch.h"

namespace prune_engine {

Tensor select_cuda(Tensor values,                 // [N] float32 scores or int64 records
                   std::vector<int64_t> offsets,  // [R]
                   std::vector<int64_t> shares,   // [R]
                   int64_t den) {
  const OnDevice device({values, "values"}, {});
  const std::vector<Rank> ranks = check_select(values, offsets, shares, den);
  SelectScratch scratch(values);
  cuda::SelectArgs args = scratch.args(values);
  args.num_ranks = static_cast<int>(ranks.size());
  std::copy(ranks.begin(), ranks.end(), args.rank);
  args.den = den;
  Tensor result = torch::stable::new_empty(values, {args.num_ranks}, ScalarType::Float);
  args.out = result.mutable_data_ptr<float>();
  check_cuda(cuda::launch_select(args, device.stream()), "select");
  return result;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("select", TORCH_BOX(&prune_engine::select_cuda));
}
