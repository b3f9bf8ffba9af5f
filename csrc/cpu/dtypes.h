// SPDX-License-Identifier: Apache-2.0
// From a tensor's dtype to the C++ type of its elements. Each calls body with a null pointer of it.
#pragma once

#include "../check.h"

namespace prune_engine {

template <typename Body>
void with_float_type(ScalarType dtype, const char* name, const Body& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return body(static_cast<double*>(nullptr));
    case ScalarType::Half:
      return body(static_cast<torch::headeronly::Half*>(nullptr));
    case ScalarType::BFloat16:
      return body(static_cast<torch::headeronly::BFloat16*>(nullptr));
    default:
      refuse_dtype(name);
  }
}

// int64, or else int32: check_indices has seen to it.
template <typename Body>
void with_index_type(ScalarType dtype, const Body& body) {
  if (dtype == ScalarType::Long) return body(static_cast<int64_t*>(nullptr));
  body(static_cast<int32_t*>(nullptr));
}

}  // namespace prune_engine
