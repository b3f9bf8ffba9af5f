// SPDX-License-Identifier: Apache-2.0
// What the operators that measure activations are launched with.
#pragma once

#include <vector>

#include "on_device.h"

namespace prune_engine {

inline std::vector<cuda::Activation> activations_of(const std::vector<Tensor>& tensors,
                                                    const OnDevice& device) {
  std::vector<cuda::Activation> found;
  for (const Tensor& tensor : tensors) {
    device.check({{tensor, "tensors"}});
    found.push_back(
        {tensor.const_data_ptr(), tensor.numel(), real_type(tensor.scalar_type(), "tensors")});
  }
  return found;
}

// May go back to torch's allocator at once: whoever gets it next is on this stream.
class MomentTensors {
 public:
  MomentTensors(const Tensor& like, int64_t count)
      : parts_(torch::stable::new_empty(like, {2 * cuda::kMomentParts}, ScalarType::Double)),
        ticket_(torch::stable::new_empty(like, {num_blocks(count, cuda::kMomentTable)},
                                         ScalarType::Int)) {}

  cuda::MomentScratch get() {
    return {parts_.mutable_data_ptr<double>(), static_cast<unsigned*>(ticket_.mutable_data_ptr())};
  }

 private:
  Tensor parts_;
  Tensor ticket_;
};

// Writes an activation of x to y, which has its layout or is x, and returns the moments.
template <typename Launch>
Tensor measure_written(const Tensor& x, Tensor& y, const OnDevice& device, const Launch& launch) {
  MomentTensors scratch(x, 1);
  Tensor row = torch::stable::new_empty(x, {3}, ScalarType::Double);
  launch(cuda::Activated{x.const_data_ptr(), y.mutable_data_ptr(), x.numel(),
                         real_type(x.scalar_type(), "x"), scratch.get(),
                         row.mutable_data_ptr<double>()},
         device.stream());
  return row;
}

}  // namespace prune_engine
