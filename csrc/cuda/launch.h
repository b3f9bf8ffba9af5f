// SPDX-License-Identifier: Apache-2.0
// Launchers of the CUDA kernels: raw pointers, sizes and a stream, so that neither nvcc sees a
// torch header nor g++ a kernel. Every pointer is a device pointer; every launcher returns the
// error of its launches and never waits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../bijection.h"
#include "../decide.h"
#include "../softmax.h"

namespace prune_engine {
namespace cuda {

enum class Real : int { kFloat, kDouble, kHalf, kBFloat16 };

struct Batch {
  Real loss_type;
  const void* losses;  // [size]
  Real score_type;
  const void* score;    // [size]; the losses themselves where nothing else is scored
  bool wide;            // indices are int64, else int32
  const void* indices;  // [size]
  int64_t size;
  void* rescaled;        // [size] of loss_type
  float* batch_weights;  // [size]
};

struct State {
  int64_t* records;  // [num_samples]
  int64_t num_samples;
  int64_t* score_sum;           // [3]
  int64_t* counters;            // [4]
  const uint8_t* weight_class;  // [num_samples]
  const float* weight_table;    // [8]
  const int64_t* epoch;         // [1]
};

// Fixed counts, found on the device: the smallest draw that can stay in each band, and how many of
// those with exactly that draw do (the smallest indices).
struct FixedCuts {
  int64_t ties[kMaxBands];
  uint32_t cut[kMaxBands];
};

// Scratch of a plan with fixed counts, uninitialised.
struct FixedScratch {
  uint32_t* histogram;  // [bands][65536]
  int64_t* ties;        // [bands][blocks + 1]
  FixedCuts* cuts;      // [1]
};

// floor(members * num / den) of a band stay.
struct Shares {
  int64_t num[kMaxBands];
  int64_t den;  // 0: independent draws
};

struct PlanArgs {
  const int64_t* records;  // [num_samples]
  int64_t num_samples;
  const float* thresholds;  // [rule.num_thresholds]
  Decision rule;            // threshold_key is not read: the kernels make the keys
  int unseen_band;
  Shares shares;
  FixedScratch scratch;    // read where shares.den > 0
  uint8_t* weight_class;   // [num_samples]
  int64_t* block_offsets;  // [blocks + 1]
};

struct Wanted {
  const int64_t* given;  // [count], or null: start + m * step
  int64_t start;
  int64_t step;
  int64_t count;
};

struct LogitBatch {
  Real logit_type;
  const void* logits;      // [size, labels.num_classes]
  const int64_t* targets;  // [size]
  bool wide;               // indices are int64, else int32
  const void* indices;     // [size]
  int64_t size;
  Labels labels;
  void* rescaled;        // [size]; float, double for double logits
  float* batch_weights;  // [size]
  float* score;          // [size]
  void* stats;           // [size, 2]; as rescaled
};

struct GradientBatch {
  Real logit_type;
  const void* grad;        // [size]; float, double for double logits
  const void* logits;      // [size, labels.num_classes]
  const int64_t* targets;  // [size]
  int64_t size;
  Labels labels;
  const float* batch_weights;  // [size]
  const void* stats;           // [size, 2]; as grad
  void* made;                  // as the logits
};

cudaError_t launch_observe(const Batch& batch, const State& state, cudaStream_t stream);
cudaError_t launch_mean_threshold(const int64_t* score_sum, float* threshold, cudaStream_t stream);
cudaError_t launch_plan(const PlanArgs& args, cudaStream_t stream);
cudaError_t launch_compact(const uint8_t* weight_class, int64_t num_samples,
                           const int64_t* block_offsets, int64_t num_kept, int32_t* kept,
                           cudaStream_t stream);
cudaError_t launch_order(const int32_t* kept, const Bijection& pi, const Wanted& wanted,
                         int32_t* samples, cudaStream_t stream);
cudaError_t launch_audit(const int64_t* records, const uint8_t* weight_class, int64_t num_samples,
                         int64_t epoch, int64_t* result, cudaStream_t stream);
cudaError_t launch_cross_entropy_observe(const LogitBatch& batch, const State& state,
                                         cudaStream_t stream);
cudaError_t launch_cross_entropy_grad(const GradientBatch& batch, cudaStream_t stream);

}  // namespace cuda
}  // namespace prune_engine
