// SPDX-License-Identifier: Apache-2.0
// Launchers of the CUDA kernels: raw pointers, sizes and a stream, so that neither nvcc sees a
// torch header nor g++ a kernel. Every pointer is a device pointer; every launcher returns the
// error of its launches and never waits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../bijection.h"
#include "../pick.h"
#include "../rule.h"
#include "../score_state.h"
#include "../select.h"
#include "../softmax.h"

namespace prune_engine {
namespace cuda {

// Alive around the launches of a call. The driver loads a kernel when it is first launched, and
// while a stream of any thread is being captured it forbids a thread to load one, unless the thread
// says that it may (as torch does where its allocator needs memory during a capture). So that a
// capture can hold a process's first call.
class MayLoad {
 public:
  MayLoad() { cudaThreadExchangeStreamCaptureMode(&other_); }
  ~MayLoad() { cudaThreadExchangeStreamCaptureMode(&other_); }
  MayLoad(const MayLoad&) = delete;
  MayLoad& operator=(const MayLoad&) = delete;

 private:
  cudaStreamCaptureMode other_ = cudaStreamCaptureModeRelaxed;
};

enum class Real : int { kFloat, kDouble, kHalf, kBFloat16 };

struct LossBatch {
  Real loss_type;
  const void* losses;  // [size]; observe_mean reads none
  Real score_type;
  const void* score;    // [size]; the losses themselves where nothing else is scored
  bool wide;            // indices are int64, else int32
  const void* indices;  // [size]
  int64_t size;
  void* rescaled;        // [size] of loss_type
  float* batch_weights;  // [size]; observe_mean writes none
};

// Fixed counts, found on the device: the smallest draw that can stay in each band, and how many of
// those with exactly that draw do (the smallest indices). Halfway: the cut's high byte, and how
// many of those that share it stay.
struct FixedCuts {
  int64_t ties[kMaxBands];
  uint32_t cut[kMaxBands];
};

// Of each band, the high bytes of its draws; then the low bytes of those with the cut's high byte.
constexpr int kByteBins = 256;
constexpr int64_t kHistogramCounts = 2 * kMaxBands * int64_t{kByteBins};

// Scratch of a plan with fixed counts, uninitialised.
struct FixedScratch {
  uint32_t* histogram;  // [kHistogramCounts]
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

// The levels of one threshold, on the device.
struct LevelTables {
  int32_t* top;         // [1]
  int32_t* cut;         // [256]
  float* weight_table;  // [256]
  int64_t* solution;    // [2]: theta, 65536 times the number kept on average
};

struct LevelPlanArgs {
  const int64_t* records;  // [num_samples]
  int64_t num_samples;
  const int32_t* top;     // [1]
  const int32_t* unseen;  // [1]: the cell of what was never seen
  const int32_t* cut;     // [256]
  uint64_t seed;
  uint32_t epoch;
  int64_t first;           // of a shard, as in Decision
  uint8_t* weight_class;   // [num_samples]
  int64_t* block_offsets;  // [blocks + 1]
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

// What a selection has come to, on the device.
struct SelectState {
  int64_t rank[kMaxRanks];  // among the samples that share the digits so far
  int64_t ties[kMaxRanks];  // how many those are
  int64_t tie_rank;         // top: the same for the last tie that stays, by index
  uint32_t key[kMaxRanks];  // the digits so far
  uint32_t last_index;
};

// Three digits of each rank's key, and three of a tie's index.
constexpr int64_t kSelectCounts = (3 * kMaxRanks + 3) * int64_t{kBins};

struct SelectArgs {
  bool records;        // values are int64 records, else float32 scores
  const void* values;  // [num_samples]
  int64_t num_samples;
  int num_ranks;
  Rank rank[kMaxRanks];
  int64_t den;
  uint32_t* counts;    // [kSelectCounts], uninitialised
  SelectState* state;  // [1], uninitialised
  float* out;          // [num_ranks]
};

struct PlanTopArgs {
  const int64_t* records;  // [num_samples]
  int64_t num_samples;
  int64_t k;
  uint32_t cut;
  uint64_t seed;
  uint32_t epoch;
  int64_t* ranked;         // [num_samples], scratch, uninitialised: what select looks at
  uint8_t* weight_class;   // [num_samples]
  int64_t* block_offsets;  // [blocks + 1]
};

constexpr int64_t kPickBlock = 4096;  // elements that one block of threads takes
constexpr int kPickRounds = 6;        // of Newton's loop, by all blocks; one block ends it

// The sizes above the edge of a round: how many, and their sum.
struct PickAbove {
  unsigned long long count, sum;
};

// What a choice has come to, on the device.
struct PickState {
  unsigned long long eligible;
  long long largest;                // key
  PickAbove above[2][kPickRounds];  // without the floor, and with it
  int64_t least;                    // size; 0 counts as 1
  PickCaps caps;
};

struct PickArgs {
  const float* values;  // [count]
  int64_t count;
  int64_t k;  // at most count
  int rule;
  int64_t floor;  // 0 unless in proportion
  int64_t seed;
  const int64_t* epoch;  // [1]
  const int64_t* step;   // [1]
  int64_t rank;
  int64_t site;
  int32_t* indices;   // [k]
  float* weights;     // [k]
  int64_t* eligible;  // [1]
  // Scratch, uninitialised. Where one block does not do: prefix sums.
  PickState* state;  // [1]
  float* clean;      // [count]
  uint8_t* flags;    // [count]
  int64_t* sums;     // [blocks + 1], of the walk
  int64_t* counts;   // [blocks + 1], of what is chosen
};

constexpr int kMomentTable = 96;        // tensors of one launch
constexpr int64_t kMomentParts = 8448;  // at least the blocks of any launch

// A tensor to be read, in the order of its storage.
struct Activation {
  const void* x;
  int64_t numel;
  Real type;
};

// Scratch of one launch, uninitialised; the ticket is set to zero before.
struct MomentScratch {
  double* parts;     // [kMomentParts][2]
  unsigned* ticket;  // [launches]
};

struct StdTarget {
  double* out;          // [num_batches]
  const int64_t* slot;  // [1], or null: 0
  int64_t num_batches;
  double* rows;  // [layers][3], scratch
  int layers;
  bool unbiased;
};

// An activation to be written and measured.
struct Activated {
  const void* x;
  void* y;  // or x itself
  int64_t numel;
  Real type;
  MomentScratch scratch;
  double* row;  // [3]
};

cudaError_t launch_observe(const LossBatch& batch, const ScoreState& state, bool advance,
                           cudaStream_t stream);

// rescaled gets weight times float32(1 / size).
cudaError_t launch_observe_mean(const LossBatch& batch, const ScoreState& state, bool advance,
                                cudaStream_t stream);
cudaError_t launch_mean_threshold(const int64_t* score_sum, float* threshold, cudaStream_t stream);
// Of each row of blocks + 1 counts: exclusive prefix sums in place, the total last.
cudaError_t launch_offsets(int64_t* counts, int rows, int64_t blocks, cudaStream_t stream);
cudaError_t launch_plan(const PlanArgs& args, cudaStream_t stream);
cudaError_t launch_cells(const int64_t* records, int64_t num_samples, int64_t* counts,
                         cudaStream_t stream);
cudaError_t launch_solve_levels(const int64_t* counts, int64_t target, int64_t least,
                                const LevelTables& levels, cudaStream_t stream);
cudaError_t launch_plan_levels(const LevelPlanArgs& args, cudaStream_t stream);
cudaError_t launch_compact(const uint8_t* weight_class, int64_t num_samples,
                           const int64_t* block_offsets, int64_t num_kept, int32_t* kept,
                           cudaStream_t stream);
cudaError_t launch_order(const int32_t* kept, const Bijection& pi, const Positions& wanted,
                         int32_t* samples, cudaStream_t stream);
cudaError_t launch_shuffle(const int64_t* places, int64_t count, const Bijection& pi, bool inverse,
                           int64_t* result, cudaStream_t stream);
cudaError_t launch_draw(const int64_t* indices, int64_t count, int64_t seed, int64_t epoch,
                        int64_t stream_number, int64_t* result, cudaStream_t stream);
// select: of args.ranked.
cudaError_t launch_plan_top(const PlanTopArgs& args, const SelectArgs& select, cudaStream_t stream);
cudaError_t launch_audit(const int64_t* records, const uint8_t* weight_class, int64_t num_samples,
                         int64_t epoch, int64_t* result, cudaStream_t stream);
cudaError_t launch_cross_entropy_observe(const LogitBatch& batch, const ScoreState& state,
                                         bool advance, cudaStream_t stream);
cudaError_t launch_cross_entropy_grad(const GradientBatch& batch, cudaStream_t stream);
cudaError_t launch_select(const SelectArgs& args, cudaStream_t stream);
cudaError_t launch_top(const SelectArgs& args, int64_t k, uint8_t* mask, cudaStream_t stream);
// select: of the clean scores; read where the largest of more than one block are wanted.
cudaError_t launch_pick(const PickArgs& args, const SelectArgs& select, cudaStream_t stream);
cudaError_t launch_moments(const Activation* tensors, int count, int64_t sample, double* rows,
                           const MomentScratch& scratch, cudaStream_t stream);
cudaError_t launch_activation_std(const Activation* tensors, int64_t sample,
                                  const StdTarget& target, const MomentScratch& scratch,
                                  cudaStream_t stream);
cudaError_t launch_relu_moments(const Activated& job, cudaStream_t stream);
cudaError_t launch_gelu_moments(const Activated& job, bool tanh, cudaStream_t stream);

}  // namespace cuda
}  // namespace prune_engine
