// SPDX-License-Identifier: Apache-2.0
// What the kernels of plan share: the keys and draws of one plan block, and a sample's fate.
#pragma once

#include "../philox.h"
#include "block.cuh"
#include "launch.h"

namespace prune_engine {
namespace cuda {

constexpr int kPlanThreads = 256;
constexpr int kPairs = kPlanBlock / 2;               // a pair: one 16-byte load, one draw word
constexpr int kThreadPairs = kPairs / kPlanThreads;  // pairs of one thread: 8
constexpr int kThreadSamples = 2 * kThreadPairs;     // 16
constexpr int kGroupsPerThread = kPairs / 4 / kPlanThreads;  // Philox calls of one thread: 2
constexpr uint32_t kNoBand = 15;

// A sample's fate: cut (bits 0-19, at most 65536), band (20-23) and class (24-31).
__device__ __forceinline__ uint32_t fate_cut(uint32_t fate) { return fate & 0xfffffu; }
__device__ __forceinline__ uint32_t fate_band(uint32_t fate) { return (fate >> 20) & 15u; }
__device__ __forceinline__ uint32_t fate_class(uint32_t fate) { return fate >> 24; }

// The rule as the kernels use it, in shared memory.
struct Bands {
  uint32_t threshold_key[kMaxBands];
  uint32_t fate[kMaxBands];
  uint32_t unseen;
};

// Thread b < kMaxBands makes band b; the caller synchronises. Thresholds are read here, on the
// device, where the policy left them. fixed: the cuts found by cut_kernel, or null for the rule's.
__device__ __forceinline__ void make_bands(const float* __restrict__ thresholds,
                                           const Decision& rule, int unseen_band,
                                           const FixedCuts* __restrict__ fixed, Bands* bands) {
  const int band = static_cast<int>(threadIdx.x);
  if (band > rule.num_thresholds) return;
  const uint32_t cut = fixed != nullptr ? fixed->cut[band] : rule.cut[band];
  const uint32_t fate = make_fate(cut, rule.weight_class[band]) | static_cast<uint32_t>(band) << 20;
  bands->fate[band] = fate;
  if (band < rule.num_thresholds) {
    bands->threshold_key[band] = bits_to_key(float_bits(thresholds[band]));
  }
  // Edge case 6: a sample without a score is kept with weight 1 unless the rule says otherwise.
  if (band == unseen_band) bands->unseen = fate;
  if (band == 0 && unseen_band < 0) bands->unseen = make_fate(0, 1) | kNoBand << 20;
}

// Records of kCount samples: their keys, and bit e of seen where sample e has a score.
template <int kCount>
struct Keys {
  uint32_t key[kCount];
  uint32_t seen;
};

// The band is the number of thresholds <= the score.
template <int kCount>
__device__ __forceinline__ void make_fates(const Bands& bands, int num_thresholds,
                                           const Keys<kCount>& keys, uint32_t (&fate)[kCount]) {
  const uint32_t lowest = bands.fate[0], unseen = bands.unseen;
#pragma unroll
  for (int e = 0; e < kCount; ++e) fate[e] = (keys.seen >> e & 1u) != 0 ? lowest : unseen;
  for (int t = 0; t < num_thresholds; ++t) {
    const uint32_t threshold = bands.threshold_key[t], above = bands.fate[t + 1];
#pragma unroll
    for (int e = 0; e < kCount; ++e) fate[e] = keys.key[e] >= threshold ? above : fate[e];
  }
}

// This thread's pairs j * kPlanThreads + threadIdx.x of the block: low and high word of one record,
// then of the next; zeros past the end.
__device__ __forceinline__ void load_pairs(const int64_t* __restrict__ records, int size,
                                           bool vector, uint4 (&pair)[kThreadPairs]) {
  if (vector) {
    const auto* pairs = reinterpret_cast<const uint4*>(records);
#pragma unroll
    for (int j = 0; j < kThreadPairs; ++j) {
      pair[j] = __ldcs(pairs + j * kPlanThreads + threadIdx.x);  // read once: streamed
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kThreadPairs; ++j) {
    const int i = 2 * (j * kPlanThreads + static_cast<int>(threadIdx.x));
    const auto one = static_cast<uint64_t>(i < size ? records[i] : 0);
    const auto two = static_cast<uint64_t>(i + 1 < size ? records[i + 1] : 0);
    pair[j] = make_uint4(static_cast<uint32_t>(one), static_cast<uint32_t>(one >> 32),
                         static_cast<uint32_t>(two), static_cast<uint32_t>(two >> 32));
  }
}

// Samples 2 j and 2 j + 1 of the keys are those of pair j.
__device__ __forceinline__ Keys<kThreadSamples> make_keys(const uint4 (&pair)[kThreadPairs]) {
  Keys<kThreadSamples> keys;
  keys.seen = 0;
#pragma unroll
  for (int j = 0; j < kThreadPairs; ++j) {
    // The high words are needed: a load whose half is unused is narrowed to two of 4 bytes.
    keys.seen |= (pair[j].x | pair[j].y) != 0 ? 1u << (2 * j) : 0u;
    keys.seen |= (pair[j].z | pair[j].w) != 0 ? 2u << (2 * j) : 0u;
    keys.key[2 * j] = pair[j].x;
    keys.key[2 * j + 1] = pair[j].z;
  }
  return keys;
}

// word[p] holds the two draws of pair p: word p % 4 of the Philox call for group p / 4.
__device__ __forceinline__ void make_draws(int64_t begin, uint64_t seed, uint32_t epoch,
                                           uint32_t* word) {
  const uint64_t first = static_cast<uint64_t>(begin) / 8;
#pragma unroll
  for (int c = 0; c < kGroupsPerThread; ++c) {
    const unsigned group = c * kPlanThreads + threadIdx.x;
    const Philox4 words = keep_words(first + group, seed, epoch);
    reinterpret_cast<uint4*>(word)[group] =
        make_uint4(words.word[0], words.word[1], words.word[2], words.word[3]);
  }
}

__device__ __forceinline__ uint32_t pair_draw(uint32_t word, int half) {
  return (word >> (16 * half)) & 0xffffu;
}

// Writes the block's weight classes from shared memory, 16 bytes per thread where they are aligned.
__device__ __forceinline__ void store_classes(const uint8_t* classes, int size, bool vector,
                                              uint8_t* __restrict__ out) {
  if (vector) {
    reinterpret_cast<uint4*>(out)[threadIdx.x] =
        reinterpret_cast<const uint4*>(classes)[threadIdx.x];
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kPlanThreads) out[i] = classes[i];
}
static_assert(kPlanThreads * sizeof(uint4) == kPlanBlock, "one 16-byte store per thread");

// Declared here for launch_plan: all but the offsets of a plan with fixed counts.
cudaError_t launch_plan_fixed(const PlanArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace prune_engine
