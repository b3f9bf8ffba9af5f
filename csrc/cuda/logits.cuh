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

// Elements before the first one that is aligned to 16 bytes, at most count.
template <typename Logit>
__device__ __forceinline__ int64_t head_of(const Logit* row, int64_t count) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(row) % 16;
  const int64_t head = past == 0 ? 0 : static_cast<int64_t>((16 - past) / sizeof(Logit));
  return head < count ? head : count;
}

// Calls body(c, logit) for the elements of a row that are this thread's, one of `threads`.
template <typename Logit, typename Body>
__device__ __forceinline__ void for_each_logit(const Logit* __restrict__ row, int64_t count,
                                               int thread, int threads, const Body& body) {
  constexpr int kCount = Vector<Logit>::kCount;
  const int64_t head = head_of(row, count);
  const int64_t vectors = (count - head) / kCount;
  for (int64_t v = thread; v < vectors; v += threads) {
    const int64_t c = head + v * kCount;
    const Vector<Logit> vector = load_vector(row + c);
#pragma unroll
    for (int k = 0; k < kCount; ++k) body(c + k, vector.at[k]);
  }
  // Both ends of a row are a few logits: unrolled, they would only be larger.
  const int64_t ends = count - vectors * kCount;
#pragma unroll 1
  for (int64_t i = thread; i < ends; i += threads) {
    const int64_t c = i < head ? i : i + vectors * kCount;
    body(c, row[c]);
  }
}

}  // namespace cuda
}  // namespace prune_engine
