// SPDX-License-Identifier: Apache-2.0
// activation_std on a GPU: the launches of moments, whose kernel ends it (moments.cu).
#include "moments.cuh"

namespace prune_engine {
namespace cuda {

cudaError_t launch_activation_std(const Activation* tensors, int64_t sample,
                                  const StdTarget& target, const MomentScratch& scratch,
                                  cudaStream_t stream) {
  return launch_tables(tensors, target.layers, sample, target, scratch, stream);
}

}  // namespace cuda
}  // namespace prune_engine
