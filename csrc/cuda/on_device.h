// SPDX-License-Identifier: Apache-2.0
// What every operator on CUDA tensors begins with: its device, its stream, its dtype. Guard, check,
// allocate, launch: nothing here waits for the device, so what only the device knows (an index out
// of range, an offset that does not fit) is handled there and never raised here.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>

#include "../check.h"
#include "launch.h"

// Weak: a torch without CUDA lacks it, and this library must load there all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace prune_engine {

inline void check_cuda(cudaError_t error, const char* op) {
  STD_TORCH_CHECK(error == cudaSuccess, op, " failed on the device: ", cudaGetErrorString(error));
}

struct Named {
  const Tensor& tensor;
  const char* name;
};

inline int32_t cuda_index(const Named& named) {
  STD_TORCH_CHECK(named.tensor.is_cuda(), named.name, " must be on a CUDA device");
  return named.tensor.get_device_index();
}

// The device of the first tensor is current while this lives; the others must be on it, for a
// kernel cannot tell a host pointer from its own.
class OnDevice {
 public:
  OnDevice(const Named& first, std::initializer_list<Named> others)
      : index_(cuda_index(first)), guard_(index_) {
    check(others);
    STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr,
                    "this torch was built without CUDA");
    // This library has a CUDA runtime of its own beside torch's; both must name the same device.
    check_cuda(cudaSetDevice(index_), "cudaSetDevice");
  }

  void check(std::initializer_list<Named> others) const {
    for (const Named& other : others) {
      STD_TORCH_CHECK(other.tensor.is_cuda() && other.tensor.get_device_index() == index_,
                      other.name, " must be on device cuda:", index_);
    }
  }

  cudaStream_t stream() const {
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream) == 0,
                    "torch gave no current stream for device cuda:", index_);
    return static_cast<cudaStream_t>(stream);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// Indices are int32 and a grid has one block per 4096 samples.
inline void check_num_samples(int64_t num_samples) {
  STD_TORCH_CHECK(num_samples <= INT32_MAX, "a device holds at most 2147483647 samples, got ",
                  num_samples);
}

inline cuda::Real real_type(ScalarType dtype, const char* name) {
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

}  // namespace prune_engine
