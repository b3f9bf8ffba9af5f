// SPDX-License-Identifier: Apache-2.0
// moments on a GPU: one launch for up to kMomentTable tensors. activation_std is the same launches;
// the last block of the last one then turns the rows of all tensors into one number.
#include "moments.cuh"

namespace prune_engine {
namespace cuda {
namespace {

// By one thread, once all rows are written.
__device__ __forceinline__ void write_std(const StdTarget& target) {
  const int64_t place = target.slot == nullptr ? 0 : *target.slot;
  if (place < 0 || place >= target.num_batches) return;
  double sum = 0.0;
#pragma unroll 1  // each addition waits for the one before
  for (int layer = 0; layer < target.layers; ++layer) {
    const double* row = target.rows + 3 * layer;
    sum += std_of({row[0], row[1], row[2]}, target.unbiased);
  }
  target.out[place] = sum / static_cast<double>(target.layers);
}

// Grid: a run of units_per_block units of 256 elements per block of 256 threads. target.layers is 0
// for moments, and for the launches before the last.
__global__ void __launch_bounds__(kMomentThreads)
    moments_kernel(const __grid_constant__ Table table, const StdTarget target) {
  if (read_table(table) && target.layers != 0 && threadIdx.x == 0) write_std(target);
}

}  // namespace

cudaError_t launch_tables(const Activation* tensors, int count, int64_t sample,
                          const StdTarget& target, const MomentScratch& scratch,
                          cudaStream_t stream) {
  const MayLoad load;
  const int launches = static_cast<int>(num_blocks(count, kMomentTable));
  const cudaError_t zeroed =
      cudaMemsetAsync(scratch.ticket, 0, launches * sizeof(unsigned), stream);
  if (zeroed != cudaSuccess) return zeroed;
  for (int launch = 0; launch < launches; ++launch) {
    const int first = launch * kMomentTable;
    Table table;
    const unsigned grid =
        fill_table(tensors + first, std::min(kMomentTable, count - first), sample,
                   target.rows + 3 * first, {scratch.parts, scratch.ticket + launch}, &table);
    StdTarget now = target;
    if (launch + 1 != launches) now.layers = 0;
    moments_kernel<<<grid, kMomentThreads, 0, stream>>>(table, now);
  }
  return cudaGetLastError();
}

cudaError_t launch_moments(const Activation* tensors, int count, int64_t sample, double* rows,
                           const MomentScratch& scratch, cudaStream_t stream) {
  StdTarget none = {};
  none.rows = rows;
  return launch_tables(tensors, count, sample, none, scratch, stream);
}

}  // namespace cuda
}  // namespace prune_engine
