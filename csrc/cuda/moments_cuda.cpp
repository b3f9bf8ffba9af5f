// SPDX-License-Identifier: Apache-2.0
// The operators that measure activations, on CUDA tensors; see ops_cuda.cpp.
#include <tuple>
#include <vector>

#include "../check_moments.h"
#include "on_device.h"

namespace prune_engine {
namespace {

std::vector<cuda::Activation> activations_of(const std::vector<Tensor>& tensors, int32_t device) {
  std::vector<cuda::Activation> found;
  for (const Tensor& tensor : tensors) {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device,
                    "tensors must be on device cuda:", device);
    found.push_back(
        {tensor.const_data_ptr(), tensor.numel(), real_type(tensor.scalar_type(), "tensors")});
  }
  return found;
}

// May go back to torch's allocator at once: whoever gets it next is on this stream.
class Scratch {
 public:
  Scratch(const Tensor& like, int64_t count)
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
Tensor write_activation(const Tensor& x, Tensor& y, const OnDevice& device, const Launch& launch) {
  Scratch scratch(x, 1);
  Tensor row = torch::stable::new_empty(x, {3}, ScalarType::Double);
  launch(cuda::Activated{x.const_data_ptr(), y.mutable_data_ptr(), x.numel(),
                         real_type(x.scalar_type(), "x"), scratch.get(),
                         row.mutable_data_ptr<double>()},
         device.stream());
  return row;
}

}  // namespace

Tensor moments_cuda(std::vector<Tensor> tensors,  // L of any shape
                    int64_t sample) {
  check_moments(tensors, sample);
  const OnDevice device({tensors[0], "tensors"}, {});
  const auto table = activations_of(tensors, tensors[0].get_device_index());
  const auto count = static_cast<int64_t>(table.size());
  Scratch scratch(tensors[0], count);
  Tensor rows = torch::stable::new_empty(tensors[0], {count, 3}, ScalarType::Double);
  check_cuda(cuda::launch_moments(table.data(), static_cast<int>(count), sample,
                                  rows.mutable_data_ptr<double>(), scratch.get(), device.stream()),
             "moments");
  return rows;
}

void activation_std_cuda(std::vector<Tensor> tensors,  // L of any shape
                         Tensor out,                   // [num_batches] float64, changed
                         std::optional<Tensor> slot,   // [1] int64, or none: 0
                         bool unbiased, int64_t sample) {
  check_activation_std(tensors, out, slot, sample);
  const OnDevice device({out, "out"}, {{slot.has_value() ? *slot : out, "slot"}});
  const auto table = activations_of(tensors, out.get_device_index());
  const auto count = static_cast<int64_t>(table.size());
  Scratch scratch(out, count);
  Tensor rows = torch::stable::new_empty(out, {count, 3}, ScalarType::Double);
  const cuda::StdTarget target = {out.mutable_data_ptr<double>(),
                                  slot.has_value() ? slot->const_data_ptr<int64_t>() : nullptr,
                                  out.numel(),
                                  rows.mutable_data_ptr<double>(),
                                  static_cast<int>(count),
                                  unbiased};
  check_cuda(
      cuda::launch_activation_std(table.data(), sample, target, scratch.get(), device.stream()),
      "activation_std");
}

Tensor relu_moments_inplace_cuda(Tensor x /* any shape, changed */) {
  check_activation(x, "x");
  const OnDevice device({x, "x"}, {});
  return write_activation(x, x, device, [](const cuda::Activated& job, cudaStream_t stream) {
    check_cuda(cuda::launch_relu_moments(job, stream), "relu_moments_");
  });
}

std::tuple<Tensor, Tensor> relu_moments_cuda(Tensor x /* any shape */) {
  check_activation(x, "x");
  const OnDevice device({x, "x"}, {});
  Tensor y = torch::stable::empty_like(x);
  return {y, write_activation(x, y, device, [](const cuda::Activated& job, cudaStream_t stream) {
            check_cuda(cuda::launch_relu_moments(job, stream), "relu_moments");
          })};
}

std::tuple<Tensor, Tensor> gelu_moments_cuda(Tensor x /* any shape */, bool tanh) {
  check_activation(x, "x");
  const OnDevice device({x, "x"}, {});
  Tensor y = torch::stable::empty_like(x);
  return {y, write_activation(x, y, device, [&](const cuda::Activated& job, cudaStream_t stream) {
            check_cuda(cuda::launch_gelu_moments(job, tanh, stream), "gelu_moments");
          })};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CUDA, m) {
  m.impl("moments", TORCH_BOX(&prune_engine::moments_cuda));
  m.impl("activation_std", TORCH_BOX(&prune_engine::activation_std_cuda));
  m.impl("relu_moments", TORCH_BOX(&prune_engine::relu_moments_cuda));
  m.impl("relu_moments_", TORCH_BOX(&prune_engine::relu_moments_inplace_cuda));
  m.impl("gelu_moments", TORCH_BOX(&prune_engine::gelu_moments_cuda));
}
