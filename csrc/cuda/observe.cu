// SPDX-License-Identifier: Apache-2.0
// observe on a GPU.
#include "observe.cuh"

namespace prune_engine {
namespace cuda {

cudaError_t launch_observe(const LossBatch& batch, const ScoreState& state, bool advance,
                           cudaStream_t stream) {
  const MayLoad load;
  if (batch.size == 0 && !advance) return cudaSuccess;  // Edge case 1
  return launch_for(batch.loss_type, [&](auto* loss) {
    launch_kernel<std::remove_pointer_t<decltype(loss)>, false>(batch, state, advance, stream);
  });
}

}  // namespace cuda
}  // namespace prune_engine
