// SPDX-License-Identifier: Apache-2.0
// The arithmetic of a score, shared by every compiled backend: keys and records.
//
// Everything is integer work or a single IEEE-754 operation, so any compiler, thread count or
// device gives the same bits. The words are those of SEMANTICS 1 and 3.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PE_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define PE_HD inline __attribute__((always_inline))
#else
#define PE_HD inline
#endif

#if defined(__CUDA_ARCH__)
#define PE_UNROLL _Pragma("unroll")  // arrays then stay in registers
#else
#define PE_UNROLL
#endif

namespace prune_engine {

constexpr int64_t kPlanBlock = 4096;  // samples per entry of block_offsets
constexpr int kNumClasses = 256;      // every value of a byte
constexpr int kMaxBands = 6;
constexpr uint32_t kStreamKeep = 0;
constexpr uint32_t kStreamOrder = 1;
constexpr uint32_t kStreamDraw = 15;
constexpr uint32_t kStreamsPerDraw = 16;
constexpr uint32_t kStreamTies = uint32_t{1} << 27;
constexpr int64_t kMaxStream = (int64_t{1} << 28) - 1;
constexpr int64_t kMaxIndex = int64_t{1} << 62;
constexpr uint32_t kLowestFiniteKey = 0x00800000u;   // of -FLT_MAX
constexpr uint32_t kHighestFiniteKey = 0xff7fffffu;  // of FLT_MAX
constexpr uint32_t kUnseenFirst = 0xff800000u;       // of +inf: above every score's
constexpr uint32_t kNoKey = 0;                       // no finite score has it: never seen
constexpr int64_t kDraws = 65536;                    // values of a draw
constexpr uint32_t kCutAll = 65536;                  // a cut that no draw reaches

PE_HD int64_t num_blocks(int64_t num_samples, int64_t block) {
  return (num_samples + block - 1) / block;
}

PE_HD uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

PE_HD float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

PE_HD bool is_finite_bits(uint32_t bits) { return (bits & 0x7f800000u) != 0x7f800000u; }

PE_HD bool is_nan_bits(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

// Order-preserving: x < y exactly when key(x) < key(y). -0.0 takes the key of +0.0.
PE_HD uint32_t bits_to_key(uint32_t bits) {
  if (bits == 0x80000000u) bits = 0;
  return (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
}

PE_HD uint32_t bits_of_key(uint32_t key) {
  const uint32_t positive = 0 - (key >> 31);
  return key ^ ~positive ^ (positive & 0x80000000u);
}

PE_HD float key_to_float(uint32_t key) { return bits_float(bits_of_key(key)); }

PE_HD int64_t make_record(int64_t epoch, uint32_t key) {
  return static_cast<int64_t>((static_cast<uint64_t>(epoch + 1) << 32) | key);
}

PE_HD int64_t record_epoch(int64_t record) { return (record >> 32) - 1; }

PE_HD uint32_t record_key(int64_t record) { return static_cast<uint32_t>(record); }

PE_HD uint32_t sample_key(int64_t record) { return record_key(record); }

// nan is a sample that was never seen, as scores() writes it.
PE_HD uint32_t sample_key(float score) {
  const uint32_t bits = float_bits(score);
  return is_nan_bits(bits) ? kNoKey : bits_to_key(bits);
}

}  // namespace prune_engine
