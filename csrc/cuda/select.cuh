// SPDX-License-Identifier: Apache-2.0
// What select and top share on a GPU: radix select. A key has three digits of 11, 11 and 10 bits.
// Each pass counts one digit of the samples whose higher digits are those of the answer; a tiny
// launch turns the counts into the next digit, on the device, so the host never waits.
#pragma once

#include "block.cuh"
#include "launch.h"

namespace prune_engine {
namespace cuda {

constexpr int kLevels = 3;
constexpr int kSelectThreads = 512;
constexpr int kPickThreads = 1024;
constexpr int kTileSamples = 16;  // of a thread
constexpr int64_t kSelectTile = kSelectThreads * kTileSamples;

// A digit of a number: of a key, or of a sample's index, which has 31 bits.
template <bool kIndex>
__device__ __forceinline__ int digit_shift(int level) {
  return level == 0 ? (kIndex ? 20 : 21) : (level == 1 ? 10 : 0);
}

template <bool kIndex>
__device__ __forceinline__ uint32_t digit_of(uint32_t number, int level) {
  const int bits = level == 0 || (level == 1 && !kIndex) ? 11 : 10;
  return (number >> digit_shift<kIndex>(level)) & ((1u << bits) - 1);
}

// The bits above a digit; there are none above the first.
template <bool kIndex>
__device__ __forceinline__ uint32_t above_digit(uint32_t number, int level) {
  return level == 0 ? 0 : number >> digit_shift<kIndex>(level - 1);
}

// What one 16-byte load brings: the keys of four scores or of two records.
__device__ __forceinline__ uint32_t loaded_key(const uint4& four, int e, const float*) {
  const uint32_t bits = e == 0 ? four.x : (e == 1 ? four.y : (e == 2 ? four.z : four.w));
  return sample_key(bits_float(bits));
}
__device__ __forceinline__ uint32_t loaded_key(const uint4& two, int e, const int64_t*) {
  // Seen where the epoch's word says so. A test of the whole record could be left out, for a key of
  // 0 means the same, and the compiler would then read the keys alone, 4 bytes at a time.
  return e == 0 ? (two.y != 0 ? two.x : kNoKey) : (two.w != 0 ? two.z : kNoKey);
}

// Calls visit(sample, key) for every sample that has been seen. Of a whole tile all loads of a
// thread are in flight before it looks at one; a tile at the end, and a view that does not begin at
// 16 bytes, are read one by one.
template <typename Sample, typename Visit>
__device__ __forceinline__ void visit_seen(const Sample* __restrict__ values, int64_t num_samples,
                                           bool vector, const Visit& visit) {
  constexpr int kPer = 16 / static_cast<int>(sizeof(Sample));
  constexpr int kLoads = kTileSamples / kPer;
  const int64_t stride = kSelectTile * gridDim.x;
  for (int64_t tile = kSelectTile * blockIdx.x; tile < num_samples; tile += stride) {
    const int thread = static_cast<int>(threadIdx.x);
    if (vector && tile + kSelectTile <= num_samples) {
      const auto* from = reinterpret_cast<const uint4*>(values + tile);
      uint4 load[kLoads];
#pragma unroll
      for (int l = 0; l < kLoads; ++l) load[l] = from[l * kSelectThreads + thread];
#pragma unroll
      for (int l = 0; l < kLoads; ++l) {
#pragma unroll
        for (int e = 0; e < kPer; ++e) {
          const uint32_t key = loaded_key(load[l], e, values);
          const int64_t at = tile + kPer * (l * kSelectThreads + thread) + e;
          if (key != kNoKey) visit(static_cast<uint32_t>(at), key);
        }
      }
      continue;
    }
    const int64_t end = tile + kSelectTile < num_samples ? tile + kSelectTile : num_samples;
#pragma unroll 1
    for (int64_t at = tile + thread; at < end; at += kSelectThreads) {
      const uint32_t key = sample_key(values[at]);
      if (key != kNoKey) visit(static_cast<uint32_t>(at), key);
    }
  }
}

// Adds a block's counts to those of all blocks; integer additions commute.
__device__ __forceinline__ void flush_counts(const uint32_t* counts, int size,
                                             uint32_t* __restrict__ out) {
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kSelectThreads) {
    if (counts[i] != 0) atomicAdd(out + i, counts[i]);
  }
}

// The bin in which a rank lies: for the one thread that has it, true. For all 1024 threads.
struct Bin {
  int bin;
  int64_t rank;   // within the bin
  int64_t count;  // of the bin
};

__device__ __forceinline__ bool find_bin(const uint32_t (&count)[2], int64_t before, int64_t rank,
                                         Bin* found) {
  const int64_t mine = static_cast<int64_t>(count[0]) + count[1];
  if (rank < before || rank >= before + mine) return false;
  const int second = rank >= before + count[0] ? 1 : 0;
  found->bin = 2 * static_cast<int>(threadIdx.x) + second;
  found->rank = rank - before - (second != 0 ? count[0] : 0);
  found->count = count[second];
  return true;
}

// Declared here for launch_top: the key of each rank, in args.state.
cudaError_t launch_digits(const SelectArgs& args, cudaStream_t stream);

inline bool select_vector(const SelectArgs& args) { return aligned(args.values, sizeof(uint4)); }

}  // namespace cuda
}  // namespace prune_engine
