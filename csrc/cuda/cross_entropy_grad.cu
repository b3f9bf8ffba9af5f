// SPDX-License-Identifier: Apache-2.0
// cross_entropy_grad on a GPU: one launch that reads each logit and writes its gradient once.
#include <type_traits>

#include "logits.cuh"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPiece = 16384;      // logits of one block
constexpr int64_t kMaxGrid = 1 << 20;  // more pieces: several per block

template <typename Real>
struct RowWriter {
  const float* weights;  // or null
  RowGradient<Real> row;
  int64_t target;  // the class that row.own is taken from, -1: none
  bool nothing;    // an ignored row

  // n neighbours from class c on: without a branch for each, as one of many rows has the target.
  template <int n, typename Logit>
  __device__ __forceinline__ void write(int64_t c, const Logit (&logit)[n], Logit (&to)[n]) const {
    Real made[n];
#pragma unroll
    for (int k = 0; k < n; ++k) {
      made[k] = exp_below(row.largest - static_cast<Real>(widen(logit[k]))) * row.scale;
    }
    if (weights != nullptr) {
#pragma unroll
      for (int k = 0; k < n; ++k) made[k] -= row.shift * static_cast<Real>(weights[c + k]);
    } else {
#pragma unroll
      for (int k = 0; k < n; ++k) made[k] -= row.shift;
    }
    if (target >= c && target < c + n) {
#pragma unroll
      for (int k = 0; k < n; ++k) made[k] -= c + k == target ? row.own : static_cast<Real>(0);
    }
#pragma unroll
    for (int k = 0; k < n; ++k) narrow(nothing ? static_cast<Real>(0) : made[k], &to[k]);
  }
};

template <typename Logit>
__device__ __forceinline__ RowWriter<typename Accumulator<Logit>::Type> row_writer(
    const GradientBatch& batch, int64_t b) {
  using Real = typename Accumulator<Logit>::Type;
  const Labels& labels = batch.labels;
  const int64_t y = batch.targets[b];
  const auto* stats = static_cast<const Real*>(batch.stats) + 2 * b;
  const bool inside = y >= 0 && y < labels.num_classes;
  const Real upstream =
      static_cast<const Real*>(batch.grad)[b] * static_cast<Real>(batch.batch_weights[b]);
  const Real weight = inside && labels.class_weight ? static_cast<Real>(labels.class_weight[y]) : 1;
  const Smoothing<Real> smoothing = {static_cast<Real>(labels.smoothing), labels.num_classes};
  return {labels.class_weight, row_gradient(stats, upstream, weight, smoothing), inside ? y : -1,
          y == labels.ignore_index};
}

template <typename Real, typename Logit>
__device__ __forceinline__ void write_one(const RowWriter<Real>& row, int64_t begin, int64_t c,
                                          const Logit* from, Logit* to) {
  const Logit logit[1] = {from[c]};
  Logit made[1];
  row.write(begin + c, logit, made);
  to[c] = made[0];
}

// Grid: one block per piece of a row.
template <typename Logit>
__global__ void __launch_bounds__(kThreads) cross_entropy_grad_kernel(GradientBatch batch) {
  constexpr int kCount = Vector<Logit>::kCount;
  const int64_t count = batch.labels.num_classes;
  const int64_t pieces = num_blocks(count, kPiece);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t p = blockIdx.x; p < batch.size * pieces; p += gridDim.x) {
    const int64_t b = p / pieces, begin = (p % pieces) * kPiece;
    const int64_t size = count - begin < kPiece ? count - begin : kPiece;
    const auto row = row_writer<Logit>(batch, b);
    const auto* from = static_cast<const Logit*>(batch.logits) + b * count + begin;
    auto* to = static_cast<Logit*>(batch.made) + b * count + begin;
    // Both begin at the same place within 16 bytes, or nothing is written in vectors.
    const bool vector =
        (reinterpret_cast<uintptr_t>(from) - reinterpret_cast<uintptr_t>(to)) % 16 == 0;
    const int64_t head = vector ? head_of(from, size) : size;
    const int64_t vectors = (size - head) / kCount;
    // A few logits at both ends, unless the whole row is such an end.
#pragma unroll 1
    for (int64_t c = thread; c < head; c += kThreads) write_one(row, begin, c, from, to);
    for (int64_t v = thread; v < vectors; v += kThreads) {
      const int64_t c = head + v * kCount;
      const Vector<Logit> read = load_vector(from + c);
      Vector<Logit> made;
      row.write(begin + c, read.at, made.at);
      store_vector(made, to + c);
    }
#pragma unroll 1
    for (int64_t c = head + vectors * kCount + thread; c < size; c += kThreads) {
      write_one(row, begin, c, from, to);
    }
  }
}

template <typename Logit>
void launch(const GradientBatch& batch, cudaStream_t stream) {
  const int64_t pieces = batch.size * num_blocks(batch.labels.num_classes, kPiece);
  const unsigned grid = grid_of(pieces, 1, kMaxGrid);
  cross_entropy_grad_kernel<Logit><<<grid, kThreads, 0, stream>>>(batch);
}

}  // namespace

cudaError_t launch_cross_entropy_grad(const GradientBatch& batch, cudaStream_t stream) {
  const MayLoad load;
  // Edge case 1. Without classes the operator alone gets here: no piece, and no grid of nothing.
  if (batch.size == 0 || batch.labels.num_classes == 0) return cudaSuccess;
  return launch_for(batch.logit_type, [&](auto* logit) {
    launch<std::remove_pointer_t<decltype(logit)>>(batch, stream);
  });
}

}  // namespace cuda
}  // namespace prune_engine
