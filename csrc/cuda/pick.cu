// SPDX-License-Identifier: Apache-2.0
// pick on a GPU: one kernel of some phases, as its arithmetic is long and kernels share no code. Up
// to 4096 elements one block takes all phases in one launch. Beyond, each is a launch of its own
// over tiles: Newton's loop for the certain ones takes some rounds by all blocks and the rest, if
// any, by one; the walk is made twice, for its sums and to mark.
#include "block.cuh"
#include "launch.h"

namespace prune_engine {
namespace cuda {
namespace {

constexpr int kPickThreads = 512;
constexpr int kEach = kPickBlock / kPickThreads;
constexpr int64_t kMaxGrid = 528;  // four blocks on each of the 132 multiprocessors of an H200

enum Phase : int {
  kClean = 1,
  kRound = 2,
  kSettle = 4,
  kWalk = 8,
  kMark = 16,
  kCount = 32,
  kWrite = 64,
  kAll = kClean | kSettle | kMark | kWrite
};
enum Fate : int { kLeftOut, kChosen, kSpare };  // spare: fills up by index while there is room

template <typename Value>
__device__ __forceinline__ Value smaller(Value a, Value b) {
  return b < a ? b : a;
}

struct Scan {
  int64_t before, total;
};
__device__ __noinline__ Scan scan(int64_t value) {
  int64_t total;
  const int64_t before = exclusive_scan<kPickThreads>(value, &total);
  return {before, total};
}

// The walk and where its points begin, in shared memory.
struct Draw {
  Bijection pi;
  Philox4 start;
  PickLine line;
};

// For all threads of a block.
__device__ __forceinline__ void make_draw(const PickArgs& args, const PickCaps& caps, Draw* draw) {
  const auto me = static_cast<uint32_t>(threadIdx.x);
  if (me <= kPickStartCall) {
    const Philox4 words =
        pick_words(make_pick_key(args.seed, args.epoch, args.step, args.rank, args.site), me);
    uint32_t* to = me < kPickStartCall ? draw->pi.key + 4 * me : draw->start.word;
#pragma unroll
    for (int word = 0; word < 4; ++word) to[word] = words.word[word];
  }
  if (me == 0) set_grid(static_cast<uint64_t>(args.count), kWalkLimit, &draw->pi);
  __syncthreads();
  if (me == 0) draw->line = make_line(caps, draw->start);
  __syncthreads();
}

// How far Newton's loop has come. sum: of all sizes; below 0 where it is not known yet.
struct Newton {
  int64_t sum;
  PickCaps caps;
  bool done;
};

// From above: the edge falls, so what is certain once stays so.
__device__ __forceinline__ void take_round(int64_t k, int64_t certain, int64_t above,
                                           Newton* newton) {
  if (newton->sum < 0) {
    newton->sum = above;
    above = certain = 0;
  } else if (k - certain == newton->caps.left) {
    newton->done = true;
    return;
  }
  newton->caps.area = newton->sum - above;
  newton->caps.left = k - certain;
  newton->caps.edge = newton->caps.area / newton->caps.left;
}

// What of the arguments and the state decides sizes and weights.
__device__ __forceinline__ PickSizes sizes_of(const PickArgs& args) {
  PickSizes sizes =
      make_pick_sizes(args.rule, args.count, static_cast<uint32_t>(args.state->largest));
  if (args.state->least > 0) sizes.least = args.state->least;
  return sizes;
}

__device__ __forceinline__ PickCaps caps_of(const PickArgs& args) {
  if (args.rule != kPickRandom) return args.state->caps;
  const auto eligible = static_cast<int64_t>(args.state->eligible);
  return {eligible, args.k, eligible / args.k};
}

__device__ __forceinline__ uint32_t key_at(const PickArgs& args, int64_t i) {
  return sample_key(args.clean[i]);
}

// clean: nan for who is not eligible, else the score that counts.
__device__ __forceinline__ void clean_values(const PickArgs& args, int64_t first, int64_t stride) {
  int64_t some = 0;
  uint32_t largest = 0;
#pragma unroll 1
  for (int64_t i = first; i < args.count; i += stride) {
    const uint32_t key = eligible_key(args.values[i]);
    args.clean[i] = key != kNoKey ? key_to_float(key) : bits_float(0x7fc00000u);
    some += key != kNoKey ? 1 : 0;
    largest = key > largest ? key : largest;
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const uint32_t other = __shfl_down_sync(kAllLanes, largest, offset);
    largest = largest < other ? other : largest;
  }
  if (lane_id() == 0) atomicMax(&args.state->largest, static_cast<long long>(largest));
  some = scan(some).total;
  if (threadIdx.x == 0) atomicAdd(&args.state->eligible, static_cast<unsigned long long>(some));
}

// One round by all blocks; or, by one, all that are left, and the floor after the first solve. The
// loop's numbers are shared: held by every thread over a scan they would not fit its registers.
__device__ __forceinline__ void find_caps(const PickArgs& args, int64_t first, int64_t stride,
                                          int phase, int solve, int round) {
  __shared__ Newton newton;
  PickState* state = args.state;
  const PickSizes sizes = sizes_of(args);
  if (threadIdx.x == 0) {
    newton = {-1, {0, 0, 0}, false};
#pragma unroll 1
    for (int past = 0; past < round && !newton.done; ++past) {
      const PickAbove above = state->above[solve][past];
      take_round(args.k, static_cast<int64_t>(above.count), static_cast<int64_t>(above.sum),
                 &newton);
    }
  }
  __syncthreads();
#pragma unroll 1
  while (!newton.done) {
    const int64_t edge = newton.caps.edge;
    int64_t sum = 0, certain = 0;
#pragma unroll 1
    for (int64_t i = first; i < args.count; i += stride) {
      const int64_t size = size_of_key(key_at(args, i), sizes);
      sum += size > edge ? size : 0;
      certain += size > edge ? 1 : 0;
    }
    sum = scan(sum).total;
    certain = scan(certain).total;
    if (phase == kRound) {
      if (threadIdx.x != 0 || certain == 0) return;
      atomicAdd(&state->above[solve][round].count, static_cast<unsigned long long>(certain));
      atomicAdd(&state->above[solve][round].sum, static_cast<unsigned long long>(sum));
      return;
    }
    if (threadIdx.x == 0) take_round(args.k, certain, sum, &newton);
    __syncthreads();
  }
  if (phase != kRound && threadIdx.x == 0) {
    state->caps = newton.caps;
    if (solve == 0) {
      state->least =
          least_size(newton.caps, args.k, static_cast<int64_t>(state->eligible), args.floor);
    }
  }
  __syncthreads();
}

// A block's part of the walk: its sum of open sizes, or from the places before on, the flags.
__device__ __forceinline__ void walk(const PickArgs& args, int phase) {
  __shared__ Draw draw;
  __shared__ uint32_t element[kEach][kPickThreads], key[kEach][kPickThreads];
  const PickCaps caps = caps_of(args);
  const PickSizes sizes = sizes_of(args);
  make_draw(args, caps, &draw);
  const auto me = static_cast<int>(threadIdx.x);
  const int64_t begin = kPickBlock * blockIdx.x + kEach * static_cast<int64_t>(me);
  const int each = static_cast<int>(smaller(int64_t{kEach}, args.count - begin));
  int64_t open = 0;
#pragma unroll 1
  for (int e = 0; e < each; ++e) {
    const auto i =
        static_cast<uint32_t>(apply_bijection(draw.pi, static_cast<uint64_t>(begin + e)));
    element[e][me] = i;
    key[e][me] = key_at(args, i);
    const int64_t size = size_of_key(key[e][me], sizes);
    open += size > caps.edge ? 0 : size;
  }
  const Scan before = scan(open);
  if (phase == kWalk) {
    if (me == 0) args.sums[blockIdx.x] = before.total;
    return;
  }
  const PickLine& line = draw.line;
  int64_t place = before.before + (gridDim.x > 1 ? args.sums[blockIdx.x] : 0);
  int64_t t = points_below(line, place), next = 0;
  bool known = false;  // whether next is the point t: the division is there once
#pragma unroll 1
  for (int e = 0; e < each; ++e) {
    const int64_t size = size_of_key(key[e][me], sizes);
    if (!known) next = t < line.left ? point_of(line, t) : INT64_MAX;
    const bool certain = size > caps.edge;
    place += certain ? 0 : size;
    known = next >= place;
    if (!known) ++t;
    args.flags[element[e][me]] = certain || !known ? kChosen : kLeftOut;
  }
}

// One block: the key of the k-th largest, bit by bit.
__device__ __forceinline__ uint32_t kth_key(const PickArgs& args) {
  uint32_t edge = 0;
#pragma unroll 1
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t trial = edge | 1u << bit;
    int64_t reached = 0;
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < args.count; i += kPickThreads) {
      reached += key_at(args, i) >= trial ? 1 : 0;
    }
    if (scan(reached).total >= args.k) edge = trial;
  }
  return edge;
}

// A block's part of the result: how many are chosen (low word) and spare (high word), or what they
// are. edge: where they are not flagged, the keys above it are chosen and those at it are spare.
__device__ __forceinline__ void list(const PickArgs& args, int phase, bool flagged, uint32_t edge) {
  const int64_t first = kPickBlock * blockIdx.x;
  const int64_t begin = first + kEach * static_cast<int64_t>(threadIdx.x);
  const int64_t end = args.k == 0 ? 0 : smaller(begin + kEach, args.count);
  const bool weighs = flagged && args.rule != kPickTop;
  const auto fate_of = [&](int64_t i) {
    if (flagged) return static_cast<int>(args.flags[i]);
    const uint32_t key = key_at(args, i);
    return static_cast<int>(key > edge ? kChosen : (key == edge ? kSpare : kLeftOut));
  };
  int64_t count = 0;
#pragma unroll 1
  for (int64_t i = begin; i < end; ++i) {
    const int fate = fate_of(i);
    count += fate == kChosen ? 1 : (fate == kSpare ? int64_t{1} << 32 : 0);
  }
  Scan before = scan(count);
  if (phase == kCount) {
    if (threadIdx.x == 0) args.counts[blockIdx.x] = before.total;
    return;
  }
  if (gridDim.x > 1) {
    before.before += args.counts[blockIdx.x];
    before.total = args.counts[gridDim.x];
  }
  const PickCaps caps = weighs ? caps_of(args) : PickCaps{0, 1, 0};
  const PickSizes sizes = sizes_of(args);
  const int64_t room = args.k - (before.total & 0xffffffff);
  int64_t spare = before.before >> 32;
  int64_t at = (before.before & 0xffffffff) + smaller(spare, room);
#pragma unroll 1
  for (int64_t i = begin; i < end; ++i) {
    const int fate = fate_of(i);
    if (fate == kLeftOut || (fate == kSpare && spare++ >= room)) continue;
    const uint32_t key = key_at(args, i);
    args.indices[at] = static_cast<int32_t>(i);
    args.weights[at++] =
        weighs ? pick_weight(size_of_key(key, sizes), caps) : (key != kNoKey ? 1.0f : 0.0f);
  }
}

// Grid: one block of 512 threads for all phases; else one per 4096 elements to walk and to list,
// and any number to clean and for a round. The state is zero before, unless all is done here.
__global__ void __launch_bounds__(kPickThreads)
    pick_phases_kernel(const __grid_constant__ PickArgs args, int phase, int solve, int round) {
  PickState* state = args.state;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPickThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kPickThreads;
  const bool all = phase == kAll;
  if (all) {
    if (threadIdx.x == 0) *state = {};
    __syncthreads();
  }
  if ((phase & kClean) != 0) {
    clean_values(args, first, stride);
    if (!all) return;
    __syncthreads();
  }
  const auto eligible = static_cast<int64_t>(state->eligible);
  const bool more = eligible > args.k && args.k > 0, drawn = more && args.rule != kPickTop;
  uint32_t edge = kNoKey;
  if (drawn) {
    if ((phase & (kRound | kSettle)) != 0 && args.rule == kPickProportional) {
      const int end = all ? 2 : solve + 1;
#pragma unroll 1
      for (; solve < end; ++solve) find_caps(args, first, stride, phase, solve, round);
    }
    if ((phase & (kWalk | kMark)) != 0) walk(args, phase);
    __syncthreads();
  } else if (all && more) {
    edge = kth_key(args);
  }
  if ((phase & (kCount | kWrite)) == 0) return;
  if (phase != kCount && first == 0) *args.eligible = eligible;
  list(args, phase, drawn || (more && !all), edge);
}

cudaError_t run_phase(const PickArgs& args, int phase, int64_t blocks, int solve, int round,
                      cudaStream_t stream) {
  pick_phases_kernel<<<static_cast<unsigned>(blocks), kPickThreads, 0, stream>>>(args, phase, solve,
                                                                                 round);
  return cudaGetLastError();
}

// A phase that counts, the prefix sums of its counts, and the phase that goes on from them.
cudaError_t run_twice(const PickArgs& args, int counting, int phase, int64_t* counts,
                      cudaStream_t stream) {
  const int64_t blocks = num_blocks(args.count, kPickBlock);
  cudaError_t error = run_phase(args, counting, blocks, 0, 0, stream);
  if (error == cudaSuccess) error = launch_offsets(counts, 1, blocks, stream);
  return error != cudaSuccess ? error : run_phase(args, phase, blocks, 0, 0, stream);
}

// Flags of what is chosen, where more than k are eligible.
cudaError_t flag_chosen(const PickArgs& args, const SelectArgs& select, cudaStream_t stream) {
  if (args.k == 0) return cudaSuccess;
  if (args.rule == kPickTop) return launch_top(select, args.k, args.flags, stream);
  const int64_t grid = grid_of(args.count, kPickThreads, kMaxGrid);
  cudaError_t error = cudaSuccess;
  for (int solve = args.floor > 0 ? 0 : 1; solve < 2; ++solve) {
    if (args.rule == kPickRandom) break;
    for (int round = 0; round < kPickRounds && error == cudaSuccess; ++round) {
      error = run_phase(args, kRound, grid, solve, round, stream);
    }
    if (error == cudaSuccess) error = run_phase(args, kSettle, 1, solve, kPickRounds, stream);
  }
  return error != cudaSuccess ? error : run_twice(args, kWalk, kMark, args.sums, stream);
}

}  // namespace

cudaError_t launch_pick(const PickArgs& args, const SelectArgs& select, cudaStream_t stream) {
  const MayLoad load;
  if (args.count <= kPickBlock) {
    return run_phase(args, kAll, 1, args.floor > 0 ? 0 : 1, 0, stream);
  }
  cudaError_t error = cudaMemsetAsync(args.state, 0, sizeof(PickState), stream);
  const int64_t grid = grid_of(args.count, kPickThreads, kMaxGrid);
  if (error == cudaSuccess) error = run_phase(args, kClean, grid, 0, 0, stream);
  if (error == cudaSuccess) error = flag_chosen(args, select, stream);
  return error != cudaSuccess ? error : run_twice(args, kCount, kWrite, args.counts, stream);
}

}  // namespace cuda
}  // namespace prune_engine
