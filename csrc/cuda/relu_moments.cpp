// SPDX-License-Identifier: Apache-2.0
// relu_moments and its in-place form on a GPU: checked, allocated and launched.
#include <tuple>

#include "moment_tensors.h"

namespace prune_engine {

Tensor relu_moments_inplace_cuda(Tensor x /* any shape, changed */) {
  check_activation(x, "x");
  const OnDevice device({x, "x"}, {});
  return measure_written(x, x, device, [](const cuda::Activated& job, cudaStream_t stream) {
    check_cuda(cuda::launch_relu_moments(job, stream), "relu_moments_");
  });
}

std::tuple<Tensor, Tensor> relu_moments_cuda(Tensor x /* any shape */) {
  check_activation(x, "x");
  const OnDevice device({x, "x"}, {});
  Tensor y = torch::stable::empty_like(x);
  return {y, measure_written(x, y, device, [](const cuda::Activated& job, cudaStream_t stream) {
            check_cuda(cuda::launch_relu_moments(job, stream), "relu_moments");
          })};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("relu_moments", TORCH_BOX(&prune_engine::relu_moments_cuda));
  m.impl("relu_moments_", TORCH_BOX(&prune_engine::relu_moments_inplace_cuda));
}
