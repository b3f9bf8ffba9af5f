// SPDX-License-Identifier: Apache-2.0
// order on a GPU: one thread per position, for a batch or for the whole epoch; no sort, no pass.
#include "block.cuh"
#include "launch.h"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGrid = 1 << 20;

// Grid: ceil(count / 256) blocks of 256 threads, at most kMaxGrid; one position per thread and
// stride. The round keys came by value: they lie in the constant bank. kRounds: see feistel.
template <int kRounds>
__global__ void __launch_bounds__(kThreads)
    order_kernel(const int32_t* __restrict__ kept, const __grid_constant__ Bijection pi,
                 const __grid_constant__ Positions wanted, int32_t* __restrict__ samples) {
  for_each_own<kThreads>(wanted.count, [&](int64_t m) {
    const int64_t position = position_at(wanted, m);
    // A position outside [0, n) reads nothing; its sample is one that no data set has.
    const bool inside = static_cast<uint64_t>(position) < pi.n;
    samples[m] =
        inside ? kept[apply_bijection<kRounds>(pi, static_cast<uint64_t>(position))] : INT32_MIN;
  });
}

}  // namespace

cudaError_t launch_order(const int32_t* kept, const Bijection& pi, const Positions& wanted,
                         int32_t* samples, cudaStream_t stream) {
  const MayLoad load;
  if (wanted.count == 0) return cudaSuccess;
  const unsigned grid = grid_of(wanted.count, kThreads, kMaxGrid);
  const auto kernel = pi.rounds == kRoundsLarge ? order_kernel<kRoundsLarge> : order_kernel<0>;
  kernel<<<grid, kThreads, 0, stream>>>(kept, pi, wanted, samples);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
