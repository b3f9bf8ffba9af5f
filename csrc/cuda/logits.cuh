// SPDX-License-Identifier: Apache-2.0
// How kernels read and write a row of logits: 16 bytes at a time from the first aligned element to
// the last, one by one before and after, so that a row may begin anywhere (C = 50257).
#pragma once

#include "../softmax.h"
#include "block.cuh"
#include "real.cuh"

namespace prune_engine {
namespace cuda {

template <typename Logit>
struct alignas(16) Vector {
  static constexpr int kCount = 16 / static_cast<int>(sizeof(Logit));
  Logit at[kCount];
};

template <typename Logit>
__device__ __forceinline__ Vector<Logit> load_vector(const Logit* from) {
  const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
  Vector<Logit> vector;
  memcpy(&vector, &bits, sizeof bits);
  return vector;
}

// By an intrinsic, for of an assignment ptxas makes four stores of 4 bytes on sm_80 and sm_90.
template <typename Logit>
__device__ __forceinline__ void store_vector(const Vector<Logit>& vector, Logit* to) {
  uint4 bits;
  memcpy(&bits, &vector, sizeof bits);
  __stwb(reinterpret_cast<uint4*>(to), bits);
}

// exp(-below) by the hardware's power of two, 2 instructions for expf's 8: within 1e-7 (below + 3)
// of itself, and 0 beyond 87.3, where expf would still leave a few bits.
__device__ __forceinline__ float exp_below(float below) {
  const float power = below * -1.44269504f;
#if defined(__CUDA_ARCH__)
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(power));
  return value;
#else
  return exp2f(power);
#endif
}
__device__ __forceinline__ double exp_below(double below) { return exp_of(-below); }

// add_logit for some logits at once: one look at the largest for all, and no branch for each.
template <bool kFull, int n, typename Real>
__device__ __forceinline__ void add_logits(RowStats<Real>* row, const Real (&logit)[n],
                                           const Real (&weight)[n]) {
  Real top = row->largest;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    if (kFull) row->second = larger_of(row->second, smaller_of(top, logit[k]));
    top = larger_of(top, logit[k]);
  }
  if (top > row->largest) raise_largest(row, top);
  // From 0 where all are -inf: nothing is nan then but what was given so.
  const Real from = top == -static_cast<Real>(INFINITY) ? 0 : top;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const Real below = from - logit[k];
    const Real power = exp_below(below);  // of a tie exactly 1
    const Real tie = below == 0 ? 1 : 0;
    const Real value = power - tie;
    row->ties += tie;
    row->rest += value;
    if (kFull) {
      row->squares += value * value;
      row->spread += value * smaller_of(below, static_cast<Real>(700));  // value is 0 beyond
      row->total += weight[k] * logit[k];
      row->weights += weight[k];
    }
  }
}

// Elements before the first one that is aligned to 16 bytes, at most count.
template <typename Logit>
__device__ __forceinline__ int64_t head_of(const Logit* row, int64_t count) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(row) % 16;
  const int64_t head = past == 0 ? 0 : static_cast<int64_t>((16 - past) / sizeof(Logit));
  return head < count ? head : count;
}

}  // namespace cuda
}  // namespace prune_engine
