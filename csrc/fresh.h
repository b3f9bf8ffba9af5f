// SPDX-License-Identifier: Apache-2.0
// Dtypes as the C shim numbers them, and new tensors for the results of a step. The dispatcher
// looks an operator up by name for each tensor that torch::stable::new_empty makes, which takes
// longer than a small batch.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace prune_engine {

// A dtype's number in the torch that is loaded; of those that a step's tensors have.
inline int32_t shim_dtype(torch::headeronly::ScalarType dtype) {
  switch (dtype) {
    case torch::headeronly::ScalarType::Byte:
      return aoti_torch_dtype_uint8();
    case torch::headeronly::ScalarType::Int:
      return aoti_torch_dtype_int32();
    case torch::headeronly::ScalarType::Long:
      return aoti_torch_dtype_int64();
    case torch::headeronly::ScalarType::Half:
      return aoti_torch_dtype_float16();
    case torch::headeronly::ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case torch::headeronly::ScalarType::Double:
      return aoti_torch_dtype_float64();
    default:
      return aoti_torch_dtype_float32();
  }
}

// Whether a tensor's dtype is this one. Tensor::scalar_type() compares with one number after
// another until it has found which it is, and a step asks two dozen times.
inline bool has_dtype(const torch::stable::Tensor& tensor, torch::headeronly::ScalarType dtype) {
  int32_t number = 0;
  STD_TORCH_CHECK(aoti_torch_get_dtype(tensor.get(), &number) == 0, "a tensor without a dtype");
  return number == shim_dtype(dtype);
}

// [size] or [size, columns], uninitialised, where another tensor is.
inline torch::stable::Tensor fresh_like(const torch::stable::Tensor& like, int64_t size,
                                        torch::headeronly::ScalarType dtype, int64_t columns = 0) {
  const int64_t sizes[2] = {size, columns}, strides[2] = {columns == 0 ? 1 : columns, 1};
  int32_t type = 0, index = 0;
  AtenTensorHandle made = nullptr;
  const bool failed = aoti_torch_get_device_type(like.get(), &type) != 0 ||
                      aoti_torch_get_device_index(like.get(), &index) != 0 ||
                      aoti_torch_empty_strided(columns == 0 ? 1 : 2, sizes, strides,
                                               shim_dtype(dtype), type, index, &made) != 0;
  STD_TORCH_CHECK(!failed, "torch could not make a tensor of ", size, " elements");
  return torch::stable::Tensor(made);
}

}  // namespace prune_engine
