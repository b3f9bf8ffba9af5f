// SPDX-License-Identifier: Apache-2.0
// moments on a GPU: one launch for up to kMomentTable tensors.
#include "moments.cuh"

namespace prune_engine {
namespace cuda {
namespace {

// Grid: a run of units_per_block units of 256 elements per block of 256 threads.
__global__ void __launch_bounds__(kMomentThreads)
    moments_kernel(const __grid_constant__ Table table) {
  read_table(table);
}

}  // namespace

cudaError_t launch_moments(const Activation* tensors, int count, int64_t sample, double* rows,
                           const MomentScratch& scratch, cudaStream_t stream) {
  const int launches = static_cast<int>(num_blocks(count, kMomentTable));
  const cudaError_t zeroed =
      cudaMemsetAsync(scratch.ticket, 0, launches * sizeof(unsigned), stream);
  if (zeroed != cudaSuccess) return zeroed;
  for (int launch = 0; launch < launches; ++launch) {
    const int first = launch * kMomentTable;
    Table table;
    const unsigned grid =
        fill_table(tensors + first, std::min(kMomentTable, count - first), sample, rows + 3 * first,
                   {scratch.parts, scratch.ticket + launch}, &table);
    moments_kernel<<<grid, kMomentThreads, 0, stream>>>(table);
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
