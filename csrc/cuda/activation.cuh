// SPDX-License-Identifier: Apache-2.0
// A kernel that writes an activation and measures what it writes.
#pragma once

#include "moments.cuh"

namespace prune_engine {
namespace cuda {

// The whole of a kernel that writes act(x) to y, which may be x.
template <typename Act, typename T>
__device__ __forceinline__ void write_activation(const T* x, T* y, int64_t numel,
                                                 int64_t units_per_block, bool vector,
                                                 const MomentScratch& scratch, double* row) {
  const int64_t units = num_blocks(numel, kSampleBlock);
  const int64_t first = blockIdx.x * units_per_block;
  const int64_t last = first + units_per_block < units ? first + units_per_block : units;
  // In place, x[0] may have been written already: that changes nothing, as relu(relu(x)) = relu(x).
  T one = numel == 0 ? T() : x[0];
  narrow(Act::apply(widen(one)), &one);
  const double origin = static_cast<double>(widen(one));
  Sums sums = {0.0, 0.0};
  add_units<Act, T>(x, y, numel, first, last, 1, vector, origin, &sums);
  if (leave_sums(sums, scratch) && warp_id() == 0) {
    write_row(scratch.parts, 0, gridDim.x, numel, origin, row);
  }
}

struct Grid {
  unsigned blocks;
  int64_t units_per_block;
  bool vector;
};

inline Grid activation_grid(const Activated& job) {
  const int64_t units = num_blocks(job.numel, kSampleBlock);
  const int64_t per_block =
      kMinUnits * std::max(num_blocks(units, kMinUnits * kMaxGrid), int64_t{1});
  const int64_t blocks = std::max(num_blocks(units, per_block), int64_t{1});
  return {static_cast<unsigned>(blocks), per_block,
          aligned(job.x, sizeof(uint4)) && aligned(job.y, sizeof(uint4))};
}

// Calls launch with a null pointer of the dtype and the grid, once the ticket is zero.
template <typename Launch>
cudaError_t launch_activation(const Activated& job, cudaStream_t stream, const Launch& launch) {
  const MayLoad load;
  const cudaError_t zeroed = cudaMemsetAsync(job.scratch.ticket, 0, sizeof(unsigned), stream);
  if (zeroed != cudaSuccess) return zeroed;
  return launch_for(job.type, [&](auto* type) { launch(type, activation_grid(job)); });
}

}  // namespace cuda
}  // namespace prune_engine
