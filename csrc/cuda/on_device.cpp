// SPDX-License-Identifier: Apache-2.0
#include "on_device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

// Weak: a torch without CUDA lacks it, and this library must load there all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace prune_engine {
namespace {

int32_t cuda_index(const Named& named) {
  STD_TORCH_CHECK(named.tensor.is_cuda(), named.name, " must be on a CUDA device");
  return named.tensor.get_device_index();
}

}  // namespace

void check_cuda(cudaError_t error, const char* op) {
  STD_TORCH_CHECK(error == cudaSuccess, op, " failed on the device: ", cudaGetErrorString(error));
}

OnDevice::OnDevice(const Named& first, std::initializer_list<Named> others)
    : index_(cuda_index(first)), guard_(index_) {
  check(others);
  STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr,
                  "this torch was built without CUDA");
  // This library has a CUDA runtime of its own beside torch's; both must name the same device.
  check_cuda(cudaSetDevice(index_), "cudaSetDevice");
}

void OnDevice::check(std::initializer_list<Named> others) const {
  for (const Named& other : others) {
    STD_TORCH_CHECK(other.tensor.is_cuda() && other.tensor.get_device_index() == index_, other.name,
                    " must be on device cuda:", index_);
  }
}

cudaStream_t OnDevice::stream() const {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream) == 0,
                  "torch gave no current stream for device cuda:", index_);
  return static_cast<cudaStream_t>(stream);
}

void check_num_samples(int64_t num_samples) {
  STD_TORCH_CHECK(num_samples <= INT32_MAX, "a device holds at most 2147483647 samples, got ",
                  num_samples);
}

cuda::Real real_type(ScalarType dtype, const char* name) {
  switch (dtype) {
    case ScalarType::Float:
      return cuda::Real::kFloat;
    case ScalarType::Double:
      return cuda::Real::kDouble;
    case ScalarType::Half:
      return cuda::Real::kHalf;
    case ScalarType::BFloat16:
      return cuda::Real::kBFloat16;
    default:
      refuse_dtype(name);
  }
}

Named records_of(const std::vector<Tensor>& state) {
  STD_TORCH_CHECK(!state.empty(), "state must be 7 tensors, got none");
  return {state[0], "records"};
}

ScoreState state_on(const OnDevice& device, const std::vector<Tensor>& state) {
  constexpr const char* kNames[] = {"records",      "score_sum",    "counters", "step",
                                    "weight_class", "weight_table", "epoch"};
  const ScoreState made = make_state(state);
  for (size_t k = 0; k < state.size(); ++k) device.check({{state[k], kNames[k]}});
  return made;
}

}  // namespace prune_engine
