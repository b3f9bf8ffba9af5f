// SPDX-License-Identifier: Apache-2.0
// observe_mean on a GPU: observe's kernel, which weighs the same part of a mean for each sample.
#include "observe.cuh"

namespace prune_engine {
namespace cuda {

cudaError_t launch_observe_mean(const LossBatch& batch, const ScoreState& state, bool advance,
                                cudaStream_t stream) {
  const MayLoad load;
  if (batch.size == 0 && !advance) return cudaSuccess;  // Edge case 1
  launch_kernel<float, true>(batch, state, advance, stream);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
