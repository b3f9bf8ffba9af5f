// SPDX-License-Identifier: Apache-2.0
// The scheduler of the emulated threads, and the launchers as C functions for Python's ctypes.
#include <ucontext.h>

#include <vector>

#include "cuda_runtime_api.h"
#include "launch.h"

Dim threadIdx, blockIdx, blockDim, gridDim;
cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

namespace emulator {
namespace {

constexpr size_t kStack = 1 << 16;

struct Fiber {
  ucontext_t context;
  bool done;
};

struct Barrier {
  unsigned arrived;
  unsigned round;
};

std::vector<Fiber> fibers;
std::vector<char> stacks;
std::vector<Barrier> warps;
std::vector<uint64_t> slots;
Barrier block_of_all;
unsigned alive;
uint64_t steps;  // barriers passed and threads ended: standing still means a deadlock
bool descending;
int strict_launches;
ucontext_t scheduler;
const std::function<void()>* kernel;

void run_fiber() {
  (*kernel)();
  fibers[threadIdx.x].done = true;
  --alive;
  ++steps;
}

void yield() {
  const unsigned self = threadIdx.x;
  swapcontext(&fibers[self].context, &scheduler);
}

void wait(Barrier* barrier, unsigned expected) {
  const unsigned round = barrier->round;
  if (++barrier->arrived == expected) {
    barrier->arrived = 0;
    ++barrier->round;
    ++steps;
    return;
  }
  while (barrier->round == round) yield();
}

void run_block() {
  for (size_t t = 0; t < fibers.size(); ++t) {
    Fiber& fiber = fibers[t];
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks.data() + t * kStack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, run_fiber, 0);
  }
  alive = static_cast<unsigned>(fibers.size());
  block_of_all = {0, 0};
  warps.assign(fibers.size() / 32 + 1, {0, 0});
  while (alive > 0) {
    const uint64_t before = steps;
    for (size_t k = 0; k < fibers.size(); ++k) {
      const size_t t = descending ? fibers.size() - 1 - k : k;
      if (fibers[t].done) continue;
      threadIdx.x = static_cast<unsigned>(t);
      swapcontext(&scheduler, &fibers[t].context);
    }
    if (steps == before) {
      std::fprintf(stderr, "a barrier that not all threads reach\n");
      std::abort();
    }
  }
}

}  // namespace

void block_barrier() { wait(&block_of_all, static_cast<unsigned>(fibers.size())); }

uint64_t exchange(uint64_t mine, int source) {
  const unsigned self = threadIdx.x, warp = self / 32;
  slots[self] = mine;
  wait(&warps[warp], 32);
  const uint64_t theirs = slots[warp * 32 + static_cast<unsigned>(source)];
  wait(&warps[warp], 32);
  return theirs;
}

void launch(unsigned grid, unsigned block, const std::function<void()>& body) {
  if (grid == 0 || block == 0 || block > 1024) std::abort();
  strict_launches += capture_mode == cudaStreamCaptureModeRelaxed ? 0 : 1;
  fibers.resize(block);
  stacks.resize(block * kStack);
  slots.assign(block, 0);
  kernel = &body;
  gridDim.x = grid;
  blockDim.x = block;
  for (unsigned b = 0; b < grid; ++b) {
    blockIdx.x = descending ? grid - 1 - b : b;
    run_block();
  }
}

}  // namespace emulator

using namespace prune_engine;

namespace {

// Tensors to be measured, and scratch full of what must not be read.
struct Measured {
  Measured(int count, const void* const* x, const int64_t* numel, const int* type)
      : parts(static_cast<size_t>(2 * cuda::kMomentParts), 1e300),
        tickets(static_cast<size_t>(num_blocks(count, cuda::kMomentTable)), 77) {
    for (int k = 0; k < count; ++k) {
      table.push_back({x[k], numel[k], static_cast<cuda::Real>(type[k])});
    }
  }
  cuda::MomentScratch scratch() const { return {parts.data(), tickets.data()}; }

  std::vector<cuda::Activation> table;
  mutable std::vector<double> parts;
  mutable std::vector<unsigned> tickets;
};

}  // namespace

extern "C" {

// How many kernels were launched that a captured stream would not have let the driver load, and
// whether a call left the thread in another mode than it had.
int emulator_strict_launches() { return emulator::strict_launches; }
int emulator_mode_changed() { return capture_mode != cudaStreamCaptureModeGlobal ? 1 : 0; }

void emulator_descending(int on) { emulator::descending = on != 0; }

void emulated_observe(int loss_type, const void* losses, int score_type, const void* score,
                      int wide, const void* indices, int64_t size, void* rescaled,
                      float* batch_weights, int64_t* records, int64_t num_samples,
                      int64_t* score_sum, int64_t* counters, int64_t* step,
                      const uint8_t* weight_class, const float* weight_table, const int64_t* epoch,
                      int advance) {
  cuda::launch_observe(
      {static_cast<cuda::Real>(loss_type), losses, static_cast<cuda::Real>(score_type), score,
       wide != 0, indices, size, rescaled, batch_weights},
      {records, num_samples, score_sum, counters, step, weight_class, weight_table, epoch},
      advance != 0, nullptr);
}

void emulated_observe_mean(int score_type, const void* score, int wide, const void* indices,
                           int64_t size, float* shares, int64_t* records, int64_t num_samples,
                           int64_t* score_sum, int64_t* counters, int64_t* step,
                           const uint8_t* weight_class, const float* weight_table,
                           const int64_t* epoch, int advance) {
  cuda::launch_observe_mean(
      {cuda::Real::kFloat, nullptr, static_cast<cuda::Real>(score_type), score, wide != 0, indices,
       size, shares, nullptr},
      {records, num_samples, score_sum, counters, step, weight_class, weight_table, epoch},
      advance != 0, nullptr);
}

void emulated_mean_threshold(const int64_t* score_sum, float* threshold) {
  cuda::launch_mean_threshold(score_sum, threshold, nullptr);
}

void emulated_plan(const int64_t* records, int64_t num_samples, const float* thresholds, int bands,
                   const int64_t* cuts, const int64_t* classes, const int64_t* keep_num,
                   int64_t keep_den, int64_t unseen_band, int64_t seed, int64_t epoch,
                   int64_t first, uint8_t* weight_class, int64_t* block_offsets) {
  const float unread[kMaxBands - 1] = {};
  cuda::PlanArgs args = {};
  args.records = records;
  args.num_samples = num_samples;
  args.thresholds = thresholds;
  args.rule = make_decision(unread, {cuts, cuts + bands}, {classes, classes + bands}, unseen_band,
                            seed, epoch, first);
  args.unseen_band = static_cast<int>(unseen_band);
  for (int b = 0; b < bands; ++b) args.shares.num[b] = keep_num[b];
  args.shares.den = keep_den;
  args.weight_class = weight_class;
  args.block_offsets = block_offsets;
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  // Not zero: what the kernels must write before they read is wrong until then.
  std::vector<uint32_t> histogram(static_cast<size_t>(cuda::kHistogramCounts), 0xabababab);
  std::vector<int64_t> ties(static_cast<size_t>(bands * (blocks + 1)), -7777);
  cuda::FixedCuts fixed;
  std::memset(&fixed, 0xab, sizeof fixed);
  if (keep_den > 0) {
    args.rule.draws = true;
    args.scratch = {histogram.data(), ties.data(), &fixed};
  }
  cuda::launch_plan(args, nullptr);
}

void emulated_cells(const int64_t* records, int64_t num_samples, int64_t* counts) {
  cuda::launch_cells(records, num_samples, counts, nullptr);
}

void emulated_solve_levels(const int64_t* counts, int64_t target, int64_t least, int32_t* top,
                           int32_t* cut, float* weight_table, int64_t* solution) {
  cuda::launch_solve_levels(counts, target, least, {top, cut, weight_table, solution}, nullptr);
}

void emulated_plan_levels(const int64_t* records, int64_t num_samples, const int32_t* top,
                          const int32_t* unseen, const int32_t* cut, int64_t seed, int64_t epoch,
                          int64_t first, uint8_t* weight_class, int64_t* block_offsets) {
  cuda::launch_plan_levels({records, num_samples, top, unseen, cut, static_cast<uint64_t>(seed),
                            static_cast<uint32_t>(epoch), first, weight_class, block_offsets},
                           nullptr);
}

void emulated_compact(const uint8_t* weight_class, int64_t num_samples,
                      const int64_t* block_offsets, int64_t num_kept, int32_t* kept) {
  cuda::launch_compact(weight_class, num_samples, block_offsets, num_kept, kept, nullptr);
}

void emulated_order(const int32_t* kept, int64_t n, const int64_t* positions, int64_t start,
                    int64_t step, int64_t count, int64_t seed, int64_t epoch, int32_t* samples) {
  const Bijection pi = make_bijection(n, seed, epoch);
  cuda::launch_order(kept, pi, {positions, start, step, count}, samples, nullptr);
}

void emulated_shuffle(const int64_t* places, int64_t count, int64_t n, int inverse, int64_t seed,
                      int64_t epoch, int64_t* result) {
  const Bijection pi = make_bijection(n, seed, epoch);
  cuda::launch_shuffle(places, count, pi, inverse != 0, result, nullptr);
}

void emulated_audit(const int64_t* records, const uint8_t* weight_class, int64_t num_samples,
                    int64_t epoch, int64_t* result) {
  cuda::launch_audit(records, weight_class, num_samples, epoch, result, nullptr);
}

void emulated_cross_entropy_observe(int logit_type, const void* logits, int64_t num_classes,
                                    const int64_t* targets, int wide, const void* indices,
                                    int64_t size, const float* class_weight, double smoothing,
                                    int64_t ignore_index, int64_t kind, void* rescaled,
                                    float* batch_weights, float* score, void* stats,
                                    int64_t* records, int64_t num_samples, int64_t* score_sum,
                                    int64_t* counters, int64_t* step, const uint8_t* weight_class,
                                    const float* weight_table, const int64_t* epoch, int advance) {
  cuda::launch_cross_entropy_observe(
      {static_cast<cuda::Real>(logit_type),
       logits,
       targets,
       wide != 0,
       indices,
       size,
       {num_classes, class_weight, smoothing, ignore_index, kind},
       rescaled,
       batch_weights,
       score,
       stats},
      {records, num_samples, score_sum, counters, step, weight_class, weight_table, epoch},
      advance != 0, nullptr);
}

void emulated_cross_entropy_grad(int logit_type, const void* grad, const void* logits,
                                 int64_t num_classes, const int64_t* targets, int64_t size,
                                 const float* class_weight, double smoothing, int64_t ignore_index,
                                 const float* batch_weights, const void* stats, void* made) {
  cuda::launch_cross_entropy_grad({static_cast<cuda::Real>(logit_type),
                                   grad,
                                   logits,
                                   targets,
                                   size,
                                   {num_classes, class_weight, smoothing, ignore_index, 0},
                                   batch_weights,
                                   stats,
                                   made},
                                  nullptr);
}

void emulated_select(int is_records, const void* values, int64_t num_samples, int64_t ranks,
                     const int64_t* offsets, const int64_t* shares, int64_t den, int64_t k,
                     float* out, uint8_t* mask) {
  // Not zero: what the kernels must write before they read is wrong until then.
  std::vector<uint32_t> counts(cuda::kSelectCounts, 0xabababab);
  cuda::SelectState state;
  std::memset(&state, 0xab, sizeof state);
  cuda::SelectArgs args = {};
  args.records = is_records != 0;
  args.values = values;
  args.num_samples = num_samples;
  args.num_ranks = static_cast<int>(ranks);
  for (int64_t r = 0; r < ranks; ++r) args.rank[r] = {offsets[r], shares[r]};
  args.den = den;
  args.counts = counts.data();
  args.state = &state;
  args.out = out;
  if (mask != nullptr) {
    cuda::launch_top(args, k, mask, nullptr);
  } else {
    cuda::launch_select(args, nullptr);
  }
}

void emulated_draw(const int64_t* indices, int64_t count, int64_t seed, int64_t epoch,
                   int64_t stream, int64_t* result) {
  cuda::launch_draw(indices, count, seed, epoch, stream, result, nullptr);
}

void emulated_plan_top(const int64_t* records, int64_t num_samples, int64_t k, int64_t cut,
                       int64_t seed, int64_t epoch, uint8_t* weight_class, int64_t* block_offsets) {
  // Not zero: what the kernels must write before they read is wrong until then.
  std::vector<int64_t> ranked(static_cast<size_t>(num_samples), -7777);
  std::vector<uint32_t> counts(cuda::kSelectCounts, 0xabababab);
  cuda::SelectState state;
  std::memset(&state, 0xab, sizeof state);
  cuda::SelectArgs select = {};
  select.records = true;
  select.values = ranked.data();
  select.num_samples = num_samples;
  select.counts = counts.data();
  select.state = &state;
  cuda::launch_plan_top(
      {records, num_samples, k, static_cast<uint32_t>(cut), static_cast<uint64_t>(seed),
       static_cast<uint32_t>(epoch), ranked.data(), weight_class, block_offsets},
      select, nullptr);
}

void emulated_pick(const float* values, int64_t count, int64_t k, int rule, int64_t floor,
                   int64_t seed, const int64_t* epoch, const int64_t* step, int64_t rank,
                   int64_t site, int32_t* indices, float* weights, int64_t* eligible) {
  // Not zero: what the kernels must write before they read is wrong until then.
  cuda::PickState state;
  std::memset(&state, 0xab, sizeof state);
  std::vector<float> clean(static_cast<size_t>(count), -7777.0f);
  std::vector<uint8_t> flags(static_cast<size_t>(count), 0xab);
  const auto blocks = static_cast<size_t>(num_blocks(count, cuda::kPickBlock));
  std::vector<int64_t> sums(blocks + 1, -7777), chosen(blocks + 1, -7777);
  std::vector<uint32_t> counts(cuda::kSelectCounts, 0xabababab);
  cuda::SelectState selected;
  std::memset(&selected, 0xab, sizeof selected);
  cuda::SelectArgs select = {};
  select.values = clean.data();
  select.num_samples = count;
  select.counts = counts.data();
  select.state = &selected;
  cuda::launch_pick({values, count, k, rule, floor, seed, epoch, step, rank, site, indices, weights,
                     eligible, &state, clean.data(), flags.data(), sums.data(), chosen.data()},
                    select, nullptr);
}

void emulated_moments(int count, const void* const* x, const int64_t* numel, const int* type,
                      int64_t sample, double* rows) {
  const Measured tensors(count, x, numel, type);
  cuda::launch_moments(tensors.table.data(), count, sample, rows, tensors.scratch(), nullptr);
}

void emulated_activation_std(int count, const void* const* x, const int64_t* numel, const int* type,
                             int64_t sample, double* out, const int64_t* slot, int64_t num_batches,
                             int unbiased) {
  const Measured tensors(count, x, numel, type);
  std::vector<double> rows(static_cast<size_t>(3 * count), 1e300);
  cuda::launch_activation_std(tensors.table.data(), sample,
                              {out, slot, num_batches, rows.data(), count, unbiased != 0},
                              tensors.scratch(), nullptr);
}

void emulated_relu_moments(const void* x, void* y, int64_t numel, int type, double* row) {
  const Measured one(1, &x, &numel, &type);
  cuda::launch_relu_moments({x, y, numel, one.table[0].type, one.scratch(), row}, nullptr);
}

void emulated_gelu_moments(const void* x, void* y, int64_t numel, int type, int tanh, double* row) {
  const Measured one(1, &x, &numel, &type);
  cuda::launch_gelu_moments({x, y, numel, one.table[0].type, one.scratch(), row}, tanh != 0,
                            nullptr);
}
}
