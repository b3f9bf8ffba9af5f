// SPDX-License-Identifier: Apache-2.0
// gelu_moments on the CPU: one pass writes the GELU and adds up what it wrote.
#include <tuple>

#include "moments.h"

namespace prune_engine {

std::tuple<Tensor, Tensor> gelu_moments_cpu(Tensor x /* any shape */, bool tanh) {
  check_activation(x, "x");
  Tensor y = torch::stable::empty_like(x);
  return {y, tanh ? write_moments<GeluLanes<true>>(x, y) : write_moments<GeluLanes<false>>(x, y)};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("gelu_moments", TORCH_BOX(&prune_engine::gelu_moments_cpu));
}
