// SPDX-License-Identifier: Apache-2.0
// pick on a GPU: checked, allocated and launched.
#include <algorithm>
#include <optional>
#include <tuple>

#include "select_scratch.h"

namespace prune_engine {

std::tuple<Tensor, Tensor, Tensor> pick_cuda(Tensor values,  // [B] float32
                                             int64_t k, int64_t rule, int64_t floor, int64_t seed,
                                             Tensor epoch,  // [1] int64
                                             Tensor step,   // [1] int64
                                             int64_t rank, int64_t site) {
  const OnDevice device({values, "values"}, {{epoch, "epoch"}, {step, "step"}});
  check_pick(values, k, rule, floor, seed, epoch, step, rank, site);
  const int64_t count = values.numel(), blocks = num_blocks(count, cuda::kPickBlock);
  k = std::min(k, count);
  Tensor indices = torch::stable::new_empty(values, {k}, ScalarType::Int);
  Tensor weights = torch::stable::new_empty(values, {k}, ScalarType::Float);
  Tensor eligible = torch::stable::new_empty(values, {1}, ScalarType::Long);
  // The scratch may go back to torch's allocator at once: whoever gets it next is on this stream.
  Tensor clean = torch::stable::new_empty(values, {count});
  Tensor flags = torch::stable::new_empty(values, {count}, ScalarType::Byte);
  Tensor state = torch::stable::new_empty(values, {sizeof(cuda::PickState)}, ScalarType::Byte);
  cuda::PickArgs args = {values.const_data_ptr<float>(),
                         count,
                         k,
                         static_cast<int>(rule),
                         rule == kPickProportional ? floor : 0,
                         seed,
                         epoch.const_data_ptr<int64_t>(),
                         step.const_data_ptr<int64_t>(),
                         rank,
                         site,
                         indices.mutable_data_ptr<int32_t>(),
                         weights.mutable_data_ptr<float>(),
                         eligible.mutable_data_ptr<int64_t>(),
                         static_cast<cuda::PickState*>(state.mutable_data_ptr()),
                         clean.mutable_data_ptr<float>(),
                         flags.mutable_data_ptr<uint8_t>(),
                         nullptr,
                         nullptr};
  cuda::SelectArgs largest = {};
  std::optional<SelectScratch> select;
  std::optional<Tensor> sums;
  if (blocks > 1) {
    sums = torch::stable::new_empty(values, {2 * (blocks + 1)}, ScalarType::Long);
    args.sums = sums->mutable_data_ptr<int64_t>();
    args.counts = args.sums + blocks + 1;
    if (rule == kPickTop) largest = select.emplace(clean).args(clean);
  }
  check_cuda(cuda::launch_pick(args, largest, device.stream()), "pick");
  return {indices, weights, eligible};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("pick", TORCH_BOX(&prune_engine::pick_cuda));
}
