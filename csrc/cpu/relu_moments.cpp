// SPDX-License-Identifier: Apache-2.0
// relu_moments and its in-place form on the CPU: one pass writes the ReLU and adds up what it
// wrote.
#include <tuple>

#include "moments.h"

namespace prune_engine {

Tensor relu_moments_inplace_cpu(Tensor x /* any shape, changed */) {
  check_activation(x, "x");
  return write_moments<ReluLanes>(x, x);
}

std::tuple<Tensor, Tensor> relu_moments_cpu(Tensor x /* any shape */) {
  check_activation(x, "x");
  Tensor y = torch::stable::empty_like(x);
  return {y, write_moments<ReluLanes>(x, y)};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("relu_moments", TORCH_BOX(&prune_engine::relu_moments_cpu));
  m.impl("relu_moments_", TORCH_BOX(&prune_engine::relu_moments_inplace_cpu));
}
