// SPDX-License-Identifier: Apache-2.0
// Argument checks of the operators: the last line of defence behind the checks in ops.py.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/macros/Macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <vector>

namespace prune_engine {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_vector(const Tensor& tensor, const char* name, ScalarType dtype,
                         const char* dtype_name) {
  STD_TORCH_CHECK(tensor.dim() == 1, name, " must be a vector, got ", tensor.dim(), " dimensions");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", dtype_name);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

inline void check_size(const Tensor& tensor, const char* name, int64_t size) {
  STD_TORCH_CHECK(tensor.numel() == size, name, " must have ", size, " elements, got ",
                  tensor.numel());
}

inline void check_epoch(int64_t epoch) {
  STD_TORCH_CHECK(epoch >= 0 && epoch < INT32_MAX, "epoch must be in 0..2147483646, got ", epoch);
}

inline void check_seed(int64_t seed) {
  STD_TORCH_CHECK(seed >= 0, "seed must be in 0..2^63-1, got ", seed);
}

}  // namespace prune_engine
