// SPDX-License-Identifier: Apache-2.0
// Argument checks of the operators that measure activations.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "check.h"

namespace prune_engine {

// Elements fill their storage without gap or overlap: contiguous after some permutation.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (size_t k = 0; k < sizes.size(); ++k) {
    if (sizes[k] != 1) dims.emplace_back(strides[k], sizes[k]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline void check_activation(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Double && dtype != ScalarType::Half &&
      dtype != ScalarType::BFloat16) {
    refuse_dtype(name);
  }
  STD_TORCH_CHECK(is_dense(tensor), name, " must be dense: its elements without gap or overlap");
}

inline void check_moments(const std::vector<Tensor>& tensors, int64_t sample) {
  STD_TORCH_CHECK(!tensors.empty(), "tensors must be at least one tensor, got none");
  STD_TORCH_CHECK(sample >= 1, "sample must be at least 1, got ", sample);
  for (const Tensor& tensor : tensors) check_activation(tensor, "tensors");
}

// All but the value of slot, which only a cpu can read.
inline void check_activation_std(const std::vector<Tensor>& tensors, const Tensor& out,
                                 const std::optional<Tensor>& slot, int64_t sample) {
  check_moments(tensors, sample);
  check_vector(out, "out", ScalarType::Double);
  if (!slot.has_value()) return;
  check_vector(*slot, "slot", ScalarType::Long, 1);
}

}  // namespace prune_engine
