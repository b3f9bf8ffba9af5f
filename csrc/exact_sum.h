// SPDX-License-Identifier: Apache-2.0
// The exact sum of any float32 scores and its mean threshold, shared by every compiled backend. The
// words are those of SEMANTICS 3.1 and 3.2; all of it is integer work in 64 bits.
#pragma once

#include "semantics.h"

namespace prune_engine {

// score_sum: limbs of 32 bits in units of 2^-149, then the number seen. Limb j is the plain sum of
// what the seen samples put there, so it is a function of the records alone, whatever the order of
// additions, and |limb| <= N (2^32 - 1) < 2^63 for N < 2^31; between additions it may wrap.
constexpr int kLimbs = 9;
constexpr int kSumWords = kLimbs + 1;
constexpr int kAuditWords = kSumWords + 3;  // then planned and seen, missing, extra
constexpr int kDigits = kLimbs + 1;         // of a sum whose carries are propagated

// low is added to limb[group], high to limb[group + 1]: two's complement, so 0 <= low < 2^32 and
// -2^23 <= high < 2^23. A score is m 2^(place - 149) with m < 2^24 and place in 0..253.
struct Addend {
  uint32_t group;
  int64_t low, high;
};

PE_HD Addend addend_of_bits(uint32_t bits) {
  const uint32_t exponent = (bits >> 23) & 0xffu;
  const uint32_t normal = exponent != 0 ? 1 : 0;
  const uint32_t place = exponent - normal;
  const uint64_t mantissa = (bits & 0x7fffffu) | (normal << 23);
  const uint64_t negative = 0 - static_cast<uint64_t>(bits >> 31);
  const auto value = static_cast<int64_t>(((mantissa << (place & 31)) ^ negative) - negative);
  return {place >> 5, value & 0xffffffffll, value >> 32};
}

PE_HD int bit_length(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return 32 - __clz(static_cast<int>(x));
#elif defined(__GNUC__)
  return x == 0 ? 0 : 32 - __builtin_clz(x);
#else
  int length = 0;
  for (; x != 0; x >>= 1) ++length;
  return length;
#endif
}

// |sum| in digits of 32 bits, the lowest first; returns whether the sum is negative.
PE_HD bool digits_of_sum(const int64_t* score_sum, uint32_t (&digit)[kDigits]) {
  int64_t carry = 0;
  PE_UNROLL
  for (int j = 0; j < kLimbs; ++j) {
    // |carry| <= 2^31: no sum of N < 2^31 samples overflows here; of any other words it wraps.
    const auto limb =
        static_cast<int64_t>(static_cast<uint64_t>(score_sum[j]) + static_cast<uint64_t>(carry));
    digit[j] = static_cast<uint32_t>(limb);
    carry = limb >> 32;
  }
  digit[kLimbs] = static_cast<uint32_t>(carry);
  const bool negative = carry < 0;
  const uint32_t flip = negative ? 0xffffffffu : 0;
  uint64_t one = negative ? 1 : 0;
  PE_UNROLL
  for (int j = 0; j < kDigits; ++j) {
    const uint64_t flipped = static_cast<uint64_t>(digit[j] ^ flip) + one;
    digit[j] = static_cast<uint32_t>(flipped);
    one = flipped >> 32;
  }
  return negative;
}

// The two highest digits of |sum| / seen, and whether anything lies below them. They hold the 24
// bits of a float, so nothing more of the quotient is needed.
struct Quotient {
  int at;           // of the higher digit; -1: below one unit
  uint64_t window;  // both
  bool rest;
};

PE_HD Quotient divide_digits(const uint32_t (&digit)[kDigits], uint64_t seen) {
  uint64_t rest = 0, first = 0;
  uint32_t following = 0, sticky = 0;
  int at = -1;
  PE_UNROLL
  for (int j = kDigits - 1; j >= 0; --j) {
    const uint64_t here = rest << 32 | digit[j];  // below 2^63: rest < seen < 2^31
    if (at >= 0) {
      following = j == at - 1 ? digit[j] : following;
      sticky |= j == at - 1 ? 0 : digit[j];
    } else if (here >= seen) {
      at = j;
      first = here;
    } else {
      rest = here;
    }
  }
  if (at < 0) return {at, 0, rest != 0};
  uint64_t window = first / seen << 32;
  rest = first % seen;
  if (at > 0) {
    const uint64_t here = rest << 32 | following;
    window |= here / seen;
    rest = here % seen;
  }
  return {at, window, rest != 0 || sticky != 0};
}

// The bits of the smallest float32 x with x * seen >= sum, never those of -0.0. A float of so many
// bits dropped is (dropped << 23) + the 24 bits that stay: for subnormals, whose bits are the
// number itself, and beyond, where the leading bit makes the exponent one larger. So the next
// larger one is 1 more, across all exponents.
PE_HD uint32_t mean_threshold_bits(const int64_t* score_sum) {
  const int64_t seen = score_sum[kLimbs];
  if (seen <= 0) return bits_of_key(kLowestFiniteKey);  // Edge case 6, nothing seen: nobody is low
  uint32_t digit[kDigits];
  const bool negative = digits_of_sum(score_sum, digit);
  const Quotient mean = divide_digits(digit, static_cast<uint64_t>(seen));
  uint32_t bits = 0;
  bool inexact = mean.rest;
  if (mean.at >= 0) {
    int down = 8 + bit_length(static_cast<uint32_t>(mean.window >> 32));
    if (mean.at == 0 && down < 32) down = 32;  // subnormal: no place lies below the digit
    inexact |= mean.window << (64 - down) != 0;
    bits = (static_cast<uint32_t>(32 * (mean.at - 1) + down) << 23) +
           static_cast<uint32_t>(mean.window >> down);
  }
  if (negative) return bits == 0 ? 0 : bits | 0x80000000u;  // towards zero
  return bits + (inexact ? 1 : 0);
}

PE_HD float mean_threshold(const int64_t* score_sum) {
  return bits_float(mean_threshold_bits(score_sum));
}

}  // namespace prune_engine
