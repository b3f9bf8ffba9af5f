// SPDX-License-Identifier: Apache-2.0
// mean_threshold on a GPU: one thread, O(1), whatever N; the result stays on the device.
#include "../exact_sum.h"
#include "launch.h"

namespace prune_engine {
namespace cuda {
namespace {

// Grid: one block of one thread.
__global__ void mean_threshold_kernel(const int64_t* __restrict__ score_sum,
                                      float* __restrict__ threshold) {
  *threshold = mean_threshold(score_sum);
}

}  // namespace

cudaError_t launch_mean_threshold(const int64_t* score_sum, float* threshold, cudaStream_t stream) {
  const MayLoad load;
  mean_threshold_kernel<<<1, 1, 0, stream>>>(score_sum, threshold);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
