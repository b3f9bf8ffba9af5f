// SPDX-License-Identifier: Apache-2.0
// relu_moments on a GPU, also in place: one launch writes the ReLU and measures it.
#include <type_traits>

#include "activation.cuh"

namespace prune_engine {
namespace cuda {
namespace {

// Zero where x <= 0; a nan stays one.
struct Relu {
  static constexpr bool kWrites = true;
  template <typename Wide>
  static __device__ __forceinline__ Wide apply(Wide x) {
    return x <= Wide(0) ? Wide(0) : x;
  }
};

// Grid: a run of units_per_block units of 256 elements per block of 256 threads.
template <typename T>
__global__ void __launch_bounds__(kMomentThreads)
    relu_moments_kernel(const T* x, T* y, int64_t numel, int64_t units_per_block, bool vector,
                        MomentScratch scratch, double* row) {
  write_activation<Relu, T>(x, y, numel, units_per_block, vector, scratch, row);
}

}  // namespace

cudaError_t launch_relu_moments(const Activated& job, cudaStream_t stream) {
  return launch_activation(job, stream, [&](auto* type, const Grid& grid) {
    using T = std::remove_pointer_t<decltype(type)>;
    relu_moments_kernel<T><<<grid.blocks, kMomentThreads, 0, stream>>>(
        static_cast<const T*>(job.x), static_cast<T*>(job.y), job.numel, grid.units_per_block,
        grid.vector, job.scratch, job.row);
  });
}

}  // namespace cuda
}  // namespace prune_engine
