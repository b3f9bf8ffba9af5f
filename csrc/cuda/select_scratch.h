// SPDX-License-Identifier: Apache-2.0
// What select and top are launched with.
#pragma once

#include "on_device.h"

namespace prune_engine {

// Arguments of select and top, and the scratch they point to. It may go back to torch's allocator
// at once: whoever gets it next is on this stream.
struct SelectScratch {
  Tensor counts;
  Tensor state;

  explicit SelectScratch(const Tensor& values)
      : counts(torch::stable::new_empty(values, {cuda::kSelectCounts}, ScalarType::Int)),
        state(torch::stable::new_empty(values, {sizeof(cuda::SelectState)}, ScalarType::Byte)) {}

  cuda::SelectArgs args(const Tensor& values) {
    cuda::SelectArgs args = {};
    args.records = values.scalar_type() == ScalarType::Long;
    args.values = values.const_data_ptr();
    args.num_samples = values.numel();
    args.counts = static_cast<uint32_t*>(counts.mutable_data_ptr());
    args.state = static_cast<cuda::SelectState*>(state.mutable_data_ptr());
    return args;
  }
};

}  // namespace prune_engine
