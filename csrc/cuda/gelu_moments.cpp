// SPDX-License-Identifier: Apache-2.0
// gelu_moments on a GPU: checked, allocated and launched.
#include <tuple>

#include "moment_tensors.h"

namespace prune_engine {

std::tuple<Tensor, Tensor> gelu_moments_cuda(Tensor x /* any shape */, bool tanh) {
  check_activation(x, "x");
  const OnDevice device({x, "x"}, {});
  Tensor y = torch::stable::empty_like(x);
  return {y, measure_written(x, y, device, [&](const cuda::Activated& job, cudaStream_t stream) {
            check_cuda(cuda::launch_gelu_moments(job, tanh, stream), "gelu_moments");
          })};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("gelu_moments", TORCH_BOX(&prune_engine::gelu_moments_cuda));
}
