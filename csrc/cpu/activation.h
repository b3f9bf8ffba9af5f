// SPDX-License-Identifier: Apache-2.0
// What is done to the elements on their way into the moments: nothing, a ReLU or a GELU. Each takes
// W elements from x, leaves W in y (but for ReadLanes) and returns what it left, widened.
#pragma once

#include <cmath>

#include "lanes.h"

namespace prune_engine {

struct ReadLanes {
  static constexpr bool kWrites = false;
  static constexpr bool kCheap = true;

  template <int W, typename T>
  static PE_INLINE auto apply(const T* x, T*) {
    return Vec<W>::load(x);
  }
};

template <typename T>
constexpr int16_t kInfinityBits = 0;
template <>
inline constexpr int16_t kInfinityBits<Half> = 0x7c00;
template <>
inline constexpr int16_t kInfinityBits<BFloat16> = 0x7f80;

// Zero where x <= 0; a nan stays one. Half precision needs no arithmetic: its sign decides.
struct ReluLanes {
  static constexpr bool kWrites = true;
  static constexpr bool kCheap = true;

  template <int W>
  static PE_INLINE auto apply(const float* x, float* y) {
    using V = Vec<W>;
    using Word = typename V::Word;
    const typename V::Float v = V::load(x);
    const Word kept = V::template cast<Word>(v) & ~V::template cast<Word>(v <= 0.0f);
    std::memcpy(y, &kept, sizeof kept);
    return V::template cast<typename V::Float>(kept);
  }
  template <int W>
  static PE_INLINE auto apply(const double* x, double* y) {
    using V = Vec<W>;
    using Long = typename V::Long;
    const typename V::Double v = V::load(x);
    const Long kept = V::template cast<Long>(v) & ~V::template cast<Long>(v <= 0.0);
    std::memcpy(y, &kept, sizeof kept);
    return V::template cast<typename V::Double>(kept);
  }
  template <int W, typename T>
  static PE_INLINE auto apply(const T* x, T* y) {
    using Short = typename Vec<W>::Signed;
    const Short bits = Vec<W>::template read<Short>(x);
    const Short drop = (bits < 0) & ((bits & int16_t{0x7fff}) <= kInfinityBits<T>);
    const Short kept = bits & ~drop;
    std::memcpy(y, &kept, sizeof kept);
    return Vec<W>::load(y);
  }
};

// Odd functions that end at 1, as z * P(z^2) / Q(z^2), fitted to a relative error of 2.1e-8 in
// [0, kEnd]; beyond it their float32 is 1.
struct Erf {
  static constexpr float kEnd = 3.92f;
  static constexpr float kTop[] = {1.128379107e+00f, 1.915492415e-01f, 5.287517980e-02f,
                                   3.808073234e-03f, 2.846785646e-04f, 2.025827598e-06f};
  static constexpr float kBottom[] = {1.0f,
                                      5.030887723e-01f,
                                      1.145590693e-01f,
                                      1.505492907e-02f,
                                      1.170690288e-03f,
                                      3.783047578e-05f};
};
struct Tanh {
  static constexpr float kEnd = 9.01f;
  static constexpr float kTop[] = {1.0f, 1.337973177e-01f, 3.494049888e-03f, 2.058370228e-05f,
                                   1.331932253e-08f};
  static constexpr float kBottom[] = {1.0f, 4.671304822e-01f, 2.587113343e-02f, 3.283116675e-04f,
                                      7.762133691e-07f};
};

// c[0] + u * (c[1] + u * ...).
template <typename V, size_t n>
PE_INLINE V polynomial(const float (&c)[n], const V& u) {
  V sum = u * c[n - 1] + c[n - 2];
#pragma GCC unroll 8
  for (size_t k = n - 2; k > 0; --k) sum = sum * u + c[k - 1];
  return sum;
}

template <int W, typename Fit>
PE_INLINE auto odd_sigmoid(const typename Vec<W>::Float& z) {
  using V = Vec<W>;
  using Word = typename V::Word;
  const typename V::Float u = z * z;
  const typename V::Float inside = z * polynomial(Fit::kTop, u) / polynomial(Fit::kBottom, u);
  const Word outside = V::template cast<Word>(u >= Fit::kEnd * Fit::kEnd);
  const Word one = (V::template cast<Word>(z) & 0x80000000u) | 0x3f800000u;
  return V::template cast<typename V::Float>((one & outside) |
                                             (V::template cast<Word>(inside) & ~outside));
}

// x * (1 + f(...)) / 2 in float32 and one rounding to the dtype; float64 by the C library.
template <bool kTanh>
struct GeluLanes {
  static constexpr bool kWrites = true;
  static constexpr bool kCheap = false;
  static constexpr double kRootHalf = 0.70710678118654752440;
  static constexpr double kRootTwoOverPi = 0.79788456080286535588;
  static constexpr double kCubic = 0.044715;

  template <int W>
  static PE_INLINE auto apply(const double* x, double* y) {
    for (int lane = 0; lane < W; ++lane) {
      const double v = x[lane];
      const double f =
          kTanh ? std::tanh(kRootTwoOverPi * (v + kCubic * v * v * v)) : std::erf(v * kRootHalf);
      y[lane] = 0.5 * v * (1.0 + f);
    }
    return Vec<W>::load(y);
  }
  template <int W, typename T>
  static PE_INLINE auto apply(const T* x, T* y) {
    using Float = typename Vec<W>::Float;
    const Float v = Vec<W>::load(x);
    Float f;
    if constexpr (kTanh) {
      const Float inner = v + v * v * v * static_cast<float>(kCubic);
      f = odd_sigmoid<W, Tanh>(inner * static_cast<float>(kRootTwoOverPi));
    } else {
      f = odd_sigmoid<W, Erf>(v * static_cast<float>(kRootHalf));
    }
    Vec<W>::store(y, v * 0.5f * (f + 1.0f));
    return Vec<W>::load(y);
  }
};

}  // namespace prune_engine
