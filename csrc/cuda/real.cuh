// SPDX-License-Identifier: Apache-2.0
// The four floating dtypes on a GPU: to what is computed in, back, and chosen at run time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"

namespace prune_engine {
namespace cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void narrow(float x, float* to) { *to = x; }
__device__ __forceinline__ void narrow(double x, double* to) { *to = x; }
__device__ __forceinline__ void narrow(float x, __half* to) { *to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }

// Element at of a tensor. A branch that all threads take alike, instead of a kernel for each dtype.
template <typename Wide>
__device__ __forceinline__ Wide read_real(const void* data, Real type, int64_t at) {
  switch (type) {
    case Real::kDouble:
      return static_cast<Wide>(static_cast<const double*>(data)[at]);
    case Real::kHalf:
      return static_cast<Wide>(widen(static_cast<const __half*>(data)[at]));
    case Real::kBFloat16:
      return static_cast<Wide>(widen(static_cast<const __nv_bfloat16*>(data)[at]));
    default:
      return static_cast<Wide>(static_cast<const float*>(data)[at]);
  }
}

// Calls launch with a null pointer of the type, then says how the launch went.
template <typename Launch>
cudaError_t launch_for(Real type, const Launch& launch) {
  switch (type) {
    case Real::kFloat:
      launch(static_cast<float*>(nullptr));
      break;
    case Real::kDouble:
      launch(static_cast<double*>(nullptr));
      break;
    case Real::kHalf:
      launch(static_cast<__half*>(nullptr));
      break;
    case Real::kBFloat16:
      launch(static_cast<__nv_bfloat16*>(nullptr));
      break;
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
