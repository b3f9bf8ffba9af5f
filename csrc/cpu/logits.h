// SPDX-License-Identifier: Apache-2.0
// A row of logits on the CPU, block by block: a block is in the first cache when it is read for the
// second time, so memory is read once. Every copy that dispatch.h makes adds in the same order (16
// lanes, then pairs of lanes), so the processor does not show in the result.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>

#include "../softmax.h"

namespace prune_engine {

constexpr int64_t kBlock = 1024;

// How many rows of so many logits are worth a thread.
inline int64_t row_grain(int64_t num_classes) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, num_classes));
}

void widen_block(const torch::headeronly::BFloat16* from, int64_t count, float* to);
void widen_block(const torch::headeronly::Half* from, int64_t count, float* to);
void narrow_block(const float* from, int64_t count, torch::headeronly::BFloat16* to);
void narrow_block(const float* from, int64_t count, torch::headeronly::Half* to);

// The statistics of one block; weights may be null. Not full: only what the plain loss needs.
RowStats<float> block_stats(const float* logits, const float* weights, int64_t count, bool full);

// out_c = exp(z_c - largest) * scale - shift * w_c; weights may be null.
void gradient_block(const float* logits, const float* weights, int64_t count, float largest,
                    float scale, float shift, float* out);

// The block as floats: where it is, or widened into room.
inline const float* as_floats(const float* from, int64_t, float*) { return from; }
template <typename Logit>
const float* as_floats(const Logit* from, int64_t count, float* room) {
  widen_block(from, count, room);
  return room;
}

template <typename Logit>
RowStats<float> row_stats(const Logit* logits, const float* weights, int64_t count, bool full) {
  float room[kBlock];
  RowStats<float> row = no_stats<float>();
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = count - begin < kBlock ? count - begin : kBlock;
    const float* block = as_floats(logits + begin, size, room);
    row = merged(row, block_stats(block, weights ? weights + begin : nullptr, size, full));
  }
  return row;
}
inline RowStats<double> row_stats(const double* logits, const float* weights, int64_t count, bool) {
  RowStats<double> row = no_stats<double>();
  for (int64_t c = 0; c < count; ++c) {
    add_logit<true>(&row, logits[c], weights ? static_cast<double>(weights[c]) : 1.0);
  }
  return row;
}

}  // namespace prune_engine
