// SPDX-License-Identifier: Apache-2.0
// shuffle on a GPU: checked, allocated and launched.
#include "on_device.h"

namespace prune_engine {

Tensor shuffle_cuda(Tensor places,  // [M] int64
                    int64_t n, bool inverse, int64_t seed, int64_t epoch) {
  const OnDevice device({places, "places"}, {});
  check_shuffle(places, n, seed, epoch);
  Tensor result = torch::stable::new_empty(places, {places.numel()});
  const Bijection pi = make_bijection(n, seed, epoch);
  check_cuda(cuda::launch_shuffle(places.const_data_ptr<int64_t>(), places.numel(), pi, inverse,
                                  result.mutable_data_ptr<int64_t>(), device.stream()),
             "shuffle");
  return result;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("shuffle", TORCH_BOX(&prune_engine::shuffle_cuda));
}
