// SPDX-License-Identifier: Apache-2.0
// Vectors of W floats or doubles in the compiler's own extension, read from and written to the four
// floating dtypes. Every step is one IEEE operation on each lane, so W shows in the speed alone.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

// These functions are inlined, so no vector is ever an argument whose passing could differ.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#define PE_INLINE __attribute__((always_inline)) inline

namespace prune_engine {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Written out, as compilers do not agree on a vector whose size is a template's argument.
template <int W>
struct Types;
#define PE_TYPES(W)                                             \
  template <>                                                   \
  struct Types<W> {                                             \
    typedef double Double __attribute__((vector_size(8 * W)));  \
    typedef int64_t Long __attribute__((vector_size(8 * W)));   \
    typedef float Float __attribute__((vector_size(4 * W)));    \
    typedef uint32_t Word __attribute__((vector_size(4 * W)));  \
    typedef int32_t Int __attribute__((vector_size(4 * W)));    \
    typedef uint16_t Short __attribute__((vector_size(2 * W))); \
    typedef int16_t Signed __attribute__((vector_size(2 * W))); \
  }
PE_TYPES(4);
PE_TYPES(8);
PE_TYPES(16);
#undef PE_TYPES

template <int W>
struct Vec {
  using Double = typename Types<W>::Double;
  using Long = typename Types<W>::Long;
  using Float = typename Types<W>::Float;
  using Word = typename Types<W>::Word;
  using Int = typename Types<W>::Int;
  using Short = typename Types<W>::Short;
  using Signed = typename Types<W>::Signed;

  template <typename To, typename From>
  static PE_INLINE To cast(const From& from) {
    To to;
    static_assert(sizeof to == sizeof from, "same bits");
    std::memcpy(&to, &from, sizeof to);
    return to;
  }
  template <typename V>
  static PE_INLINE V read(const void* data) {
    V v;
    std::memcpy(&v, data, sizeof v);
    return v;
  }

  static PE_INLINE Float load(const float* x) { return read<Float>(x); }
  static PE_INLINE Double load(const double* x) { return read<Double>(x); }
  static PE_INLINE Float load(const BFloat16* x) {
    return cast<Float>(__builtin_convertvector(read<Short>(x), Word) << 16);
  }
  // The exponents differ by a factor of 2^112, which is exact for subnormals as well; only inf and
  // nan need the rest of theirs.
  static PE_INLINE Float load(const Half* x) {
    const Word half = __builtin_convertvector(read<Short>(x), Word);
    const Word magnitude = half & 0x7fffu;
    const Word scaled = cast<Word>(cast<Float>(magnitude << 13) * 0x1p112f);
    const Word special = cast<Word>(cast<Int>(magnitude) >= 0x7c00) & 0x7f800000u;
    return cast<Float>(scaled | special | ((half & 0x8000u) << 16));
  }

  static PE_INLINE void store(float* y, const Float& v) { std::memcpy(y, &v, sizeof v); }
  static PE_INLINE void store(double* y, const Double& v) { std::memcpy(y, &v, sizeof v); }
  // To the nearest, ties to even; a nan keeps its upper bits, one of them set.
  static PE_INLINE void store(BFloat16* y, const Float& v) {
    const Word bits = cast<Word>(v);
    const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Word nan = cast<Word>(v != v);
    const Short out =
        __builtin_convertvector((rounded & ~nan) | (((bits >> 16) | 0x40u) & nan), Short);
    std::memcpy(y, &out, sizeof out);
  }
  // Adding 2^(e + 13) to a number of exponent e rounds it to the 10 bits that a half keeps; below
  // 2^-14 the halves are equally far apart, so the same constant serves all of them.
  static PE_INLINE void store(Half* y, const Float& v) {
    const Word bits = cast<Word>(v), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const Word exponent = magnitude & 0x7f800000u;
    const Word small = cast<Word>(cast<Int>(exponent) < 0x38800000);
    const Word unit = (exponent & ~small) | (0x38800000u & small);
    const Float magic = cast<Float>(unit + (13u << 23));
    const Float sum = cast<Float>(magnitude) + magic;
    // The sum's low bits are the half's significand with its leading bit, 2^10, where it is normal.
    const Word low = cast<Word>(sum) - cast<Word>(magic);
    const Word half = low + ((((unit - 0x38800000u) >> 13)));
    const Word large = cast<Word>(cast<Int>(magnitude) >= 0x477ff000);  // rounds to infinity
    const Word nan = cast<Word>(v != v);
    const Word special = 0x7c00u | (nan & (0x200u | ((magnitude >> 13) & 0x3ffu)));
    const Short out = __builtin_convertvector(sign | (half & ~large) | (special & large), Short);
    std::memcpy(y, &out, sizeof out);
  }
};

}  // namespace prune_engine
