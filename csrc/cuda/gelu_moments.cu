// SPDX-License-Identifier: Apache-2.0
// gelu_moments on a GPU: one launch writes the GELU and measures it.
#include <type_traits>

#include "activation.cuh"

namespace prune_engine {
namespace cuda {
namespace {

// x * (1 + f(...)) / 2 in float32 (double for double) and one rounding to the dtype.
template <bool kTanh>
struct Gelu {
  static constexpr bool kWrites = true;
  // Calls: written out for each element these were most of the kernels' bytes, and those a
  // twentieth of the wheel's.
  static __device__ __noinline__ float apply(float x) {
    const float f =
        kTanh ? tanhf(0.7978845608f * (x + 0.044715f * (x * x * x))) : erff(x * 0.7071067812f);
    return 0.5f * x * (1.0f + f);
  }
  static __device__ __noinline__ double apply(double x) {
    const double f = kTanh ? tanh(0.79788456080286535588 * (x + 0.044715 * (x * x * x)))
                           : erf(x * 0.70710678118654752440);
    return 0.5 * x * (1.0 + f);
  }
};

// Grid: a run of units_per_block units of 256 elements per block of 256 threads.
template <typename T, bool kTanh>
__global__ void __launch_bounds__(kMomentThreads)
    gelu_moments_kernel(const T* x, T* y, int64_t numel, int64_t units_per_block, bool vector,
                        MomentScratch scratch, double* row) {
  write_activation<Gelu<kTanh>, T>(x, y, numel, units_per_block, vector, scratch, row);
}

template <typename T, bool kTanh>
void launch(const Activated& job, const Grid& grid, cudaStream_t stream) {
  gelu_moments_kernel<T, kTanh><<<grid.blocks, kMomentThreads, 0, stream>>>(
      static_cast<const T*>(job.x), static_cast<T*>(job.y), job.numel, grid.units_per_block,
      grid.vector, job.scratch, job.row);
}

}  // namespace

cudaError_t launch_gelu_moments(const Activated& job, bool tanh, cudaStream_t stream) {
  return launch_activation(job, stream, [&](auto* type, const Grid& grid) {
    using T = std::remove_pointer_t<decltype(type)>;
    tanh ? launch<T, true>(job, grid, stream) : launch<T, false>(job, grid, stream);
  });
}

}  // namespace cuda
}  // namespace prune_engine
