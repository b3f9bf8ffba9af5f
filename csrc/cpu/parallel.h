// SPDX-License-Identifier: Apache-2.0
// Torch's own threads, in the form that the shared loops take (plan.h).
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace prune_engine {

struct TorchThreads {
  template <typename Body>
  void operator()(int64_t begin, int64_t end, int64_t grain, const Body& body) const {
    torch::stable::parallel_for(begin, end, grain, body);
  }
};

}  // namespace prune_engine
