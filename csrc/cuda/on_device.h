// SPDX-License-Identifier: Apache-2.0
// What every operator on CUDA tensors begins with: its device, its stream, its dtype. Guard, check,
// allocate, launch: nothing waits for the device, so what only the device knows (an index out of
// range, an offset that does not fit) is handled there and never raised here.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>

#include "../check.h"
#include "launch.h"

namespace prune_engine {

void check_cuda(cudaError_t error, const char* op);

struct Named {
  const Tensor& tensor;
  const char* name;
};

// The device of the first tensor is current while this lives; the others must be on it, for a
// kernel cannot tell a host pointer from its own.
class OnDevice {
 public:
  OnDevice(const Named& first, std::initializer_list<Named> others);
  void check(std::initializer_list<Named> others) const;
  cudaStream_t stream() const;

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// Indices are int32 and a grid has one block per 4096 samples.
void check_num_samples(int64_t num_samples);

cuda::Real real_type(ScalarType dtype, const char* name);

// Of the operators that change it: the tensor that says where all must be.
Named records_of(const std::vector<Tensor>& state);

// device is that of its records.
ScoreState state_on(const OnDevice& device, const std::vector<Tensor>& state);

}  // namespace prune_engine
