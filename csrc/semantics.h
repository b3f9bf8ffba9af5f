// SPDX-License-Identifier: Apache-2.0
// The arithmetic of a score, shared by every compiled backend: keys, records, codes, thresholds.
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

namespace prune_engine {

constexpr int64_t kPlanBlock = 4096;  // samples per entry of block_offsets
constexpr int kNumClasses = 8;
constexpr int kMaxBands = 6;
constexpr uint32_t kStreamKeep = 0;
constexpr uint32_t kStreamOrder = 1;
constexpr uint32_t kLowestFiniteKey = 0x00800000u;   // key of -FLT_MAX
constexpr uint32_t kHighestFiniteKey = 0xff7fffffu;  // key of FLT_MAX
constexpr uint32_t kNoKey = 0;                       // no finite score has it: never seen
constexpr int64_t kDraws = 65536;                    // values of a draw
constexpr uint32_t kCutAll = 65536;                  // a cut that no draw reaches

// score_sum: exact sum of score codes in two limbs, and how many samples have a score.
struct Limbs {
  int64_t high;  // sum of code >> 32
  int64_t low;   // sum of code & 0xffffffff
  int64_t seen;
};

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

// The bits of the score with a key, in 64 bits for loops that go on in those.
PE_HD uint64_t bits_of_key(uint64_t key) {
  const uint64_t positive = 0 - (key >> 31);
  return (key ^ ~positive ^ (positive & 0x80000000u)) & 0xffffffffu;
}

PE_HD float key_to_float(uint32_t key) {
  return bits_float(static_cast<uint32_t>(bits_of_key(key)));
}

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

// code(x) = floor(x * 2^40 + 0.5) with x clamped to [-2^22, 2^22], from the bits of x: with x =
// m * 2^(e - 150) the code is m shifted by e - 110, rounded half up. Only integer work, so no
// rounding mode or denormal flushing can touch it. Without branches, and with no constant shifted
// by a variable: in 64 bits throughout (Word) compilers vectorise it, in 32 a GPU needs fewer
// registers. A mask is all ones where a difference is negative.
template <typename Word>
PE_HD uint64_t code_of_bits(Word bits) {
  constexpr Word kZero = 0, kSign = 8 * sizeof(Word) - 1;
  constexpr Word kLimit = 0x4a800000u;  // the bits of 2^22
  const Word unsigned_bits = bits & 0x7fffffffu;
  const Word small = kZero - ((unsigned_bits - kLimit) >> kSign);
  const Word magnitude = (unsigned_bits & small) | (kLimit & ~small);
  const uint64_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;  // e = 0 shifts out anyway
  const Word exponent = magnitude >> 23;
  const Word is_down = kZero - ((exponent - 110) >> kSign);
  const Word up = (exponent - 110) & ~is_down;
  const Word is_far = kZero - ((exponent - 70) >> kSign);  // every bit goes: 40 is as good as more
  const Word down = (((110 - exponent) & ~is_far) | (40 & is_far)) & is_down;
  // Half up in two shifts: all but the last place, then one more after adding 1. Halves of negative
  // scores go towards zero: floor(-v + 1/2) = -ceil(v - 1/2).
  const Word negative = (bits >> 31) & 1, last = is_down & 1;
  const uint64_t doubled = ((mantissa << up) - (negative & last)) >> (down - last);
  const uint64_t code = (doubled + last) >> last;
  return (code ^ (0 - static_cast<uint64_t>(negative))) + negative;
}

PE_HD int64_t bits_to_code(uint32_t bits) { return static_cast<int64_t>(code_of_bits(bits)); }

PE_HD int64_t score_code(float score) { return bits_to_code(float_bits(score)); }

PE_HD int64_t code_high(int64_t code) { return code >> 32; }

PE_HD int64_t code_low(int64_t code) { return code & 0xffffffffll; }

// T = ceil((high * 2^32 + low) / seen), by long division in two limbs: no 128-bit type is needed.
// |T| <= 2^62 because every code is.
PE_HD int64_t mean_code_ceil(Limbs sum) {
  // Carry first, so that 0 <= low < 2^32.
  const int64_t high = sum.high + (sum.low >> 32);
  const uint64_t low = static_cast<uint64_t>(sum.low) & 0xffffffffull;
  int64_t quotient = high / sum.seen;
  int64_t remainder = high % sum.seen;
  if (remainder < 0) {  // floor division
    remainder += sum.seen;
    quotient -= 1;
  }
  // remainder < seen < 2^31, so the next step fits in 63 bits.
  const uint64_t rest = (static_cast<uint64_t>(remainder) << 32) | low;
  const uint64_t count = static_cast<uint64_t>(sum.seen);
  const uint64_t digit = (rest + count - 1) / count;
  return static_cast<int64_t>((static_cast<uint64_t>(quotient) << 32) + digit);
}

// The smallest float32 x with code(x) >= target: a binary search over the 2^32 keys.
PE_HD float threshold_of_code(int64_t target) {
  uint32_t low = kLowestFiniteKey;
  uint32_t high = kHighestFiniteKey;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (score_code(key_to_float(middle)) >= target) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return key_to_float(low);
}

// Edge case 6, nothing seen yet: no finite score lies below -FLT_MAX, so nobody is low.
PE_HD float mean_threshold(Limbs sum) {
  return sum.seen <= 0 ? key_to_float(kLowestFiniteKey) : threshold_of_code(mean_code_ceil(sum));
}

}  // namespace prune_engine
