// SPDX-License-Identifier: Apache-2.0
// gelu_moments on a GPU: one launch writes the GELU and measures it.
#include "activation.cuh"

namespace prune_engine {
namespace cuda {
namespace {

// x * (1 + f(...)) / 2 in float32 (double for double) and one rounding to the dtype.
template <bool kTanh>
struct Gelu {
  static constexpr bool kWrites = true;
  static __device__ __forceinline__ float apply(float x) {
    const float f =
        kTanh ? tanhf(0.7978845608f * (x + 0.044715f * (x * x * x))) : erff(x * 0.7071067812f);
    return 0.5f * x * (1.0f + f);
  }
  // A call: written out for each element, this were a third of the kernels' bytes.
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
void launch(const Activated& job, cudaStream_t stream) {
  const Grid grid = activation_grid(job);
  gelu_moments_kernel<T, kTanh><<<grid.blocks, kMomentThreads, 0, stream>>>(
      static_cast<const T*>(job.x), static_cast<T*>(job.y), job.numel, grid.units_per_block,
      grid.vector, job.scratch, job.row);
}

template <typename T>
void launch_either(const Activated& job, bool tanh, cudaStream_t stream) {
  if (tanh) {
    launch<T, true>(job, stream);
  } else {
    launch<T, false>(job, stream);
  }
}

}  // namespace

cudaError_t launch_gelu_moments(const Activated& job, bool tanh, cudaStream_t stream) {
  const cudaError_t zeroed = cudaMemsetAsync(job.scratch.ticket, 0, sizeof(unsigned), stream);
  if (zeroed != cudaSuccess) return zeroed;
  switch (job.type) {
    case Real::kFloat:
      launch_either<float>(job, tanh, stream);
      break;
    case Real::kDouble:
      launch_either<double>(job, tanh, stream);
      break;
    case Real::kHalf:
      launch_either<__half>(job, tanh, stream);
      break;
    case Real::kBFloat16:
      launch_either<__nv_bfloat16>(job, tanh, stream);
      break;
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace prune_engine
