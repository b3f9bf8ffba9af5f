// SPDX-License-Identifier: Apache-2.0
// What one pass over a row of logits leaves, and what follows from it: loss and scores. The pass is
// an online softmax (Milakov and Gimelshein 2018): sums relative to the largest logit so far, which
// are scaled when a larger one comes. The largest itself stays out of the sums, so that 1 - p, the
// entropy and the loss of a sample the model is sure of do not cancel to 0.
#pragma once

#include <cmath>
#include <cstdint>

#include "forgetting.h"

namespace prune_engine {

enum ScoreKind : int64_t {  // the order of prune_engine/scores.py
  kScoreLoss,
  kScoreEl2n,
  kScoreMargin,
  kScoreLeastConfidence,
  kScoreEntropy,
  kScoreForgetting,
  kNumScores,
};

// How a row becomes a loss and a score.
struct Labels {
  int64_t num_classes;
  const float* class_weight;  // or null: all 1
  double smoothing;
  int64_t ignore_index;
  int64_t kind;  // of the score
};

// What logits are added up in.
template <typename Logit>
struct Accumulator {
  using Type = float;
};
template <>
struct Accumulator<double> {
  using Type = double;
};

// With m the largest logit and e_c = exp(z_c - m).
template <typename Real>
struct RowStats {
  Real largest;  // m
  Real ties;     // classes with z_c = m
  Real rest;     // sum of e_c over the others
  Real squares;  // sum of e_c^2 over the others
  Real spread;   // sum of e_c * (m - z_c)
  Real second;   // the second largest logit, m again where it is tied
  Real total;    // sum of w_c z_c, with the class weights, or 1
  Real weights;  // sum of w_c
};

template <typename Real>
PE_HD RowStats<Real> no_stats() {
  const Real lowest = -static_cast<Real>(INFINITY);
  return {lowest, 0, 0, 0, 0, lowest, 0, 0};
}

#if defined(__CUDACC__)
// A GPU's calls: written out at each use, they would be most of what a kernel of doubles is.
struct Double {
  static __host__ __device__ __noinline__ double exp_of(double x) { return exp(x); }
  static __host__ __device__ __noinline__ double log1p_of(double x) { return log1p(x); }
};
PE_HD double exp_of(double x) { return Double::exp_of(x); }
PE_HD double log1p_of(double x) { return Double::log1p_of(x); }
#else
PE_HD double exp_of(double x) { return exp(x); }
PE_HD double log1p_of(double x) { return log1p(x); }
#endif
PE_HD float exp_of(float x) { return expf(x); }
PE_HD float log1p_of(float x) { return log1pf(x); }
PE_HD float sqrt_of(float x) { return sqrtf(x); }
PE_HD double sqrt_of(double x) { return sqrt(x); }
PE_HD float larger_of(float a, float b) {
  return fmaxf(a, b);
}  // of a nan and a number: the number
PE_HD double larger_of(double a, double b) { return fmax(a, b); }
PE_HD float smaller_of(float a, float b) { return fminf(a, b); }
PE_HD double smaller_of(double a, double b) { return fmin(a, b); }
PE_HD bool is_finite(float x) { return is_finite_bits(float_bits(x)); }
PE_HD bool is_finite(double x) { return x - x == 0; }

// Makes the sums relative to a larger logit.
template <typename Real>
PE_HD void raise_largest(RowStats<Real>* row, Real larger) {
  const Real step = larger - row->largest;
  const bool empty = row->largest == -static_cast<Real>(INFINITY);  // only ties at -inf, worth 0
  const Real scale = empty ? 0 : exp_of(-step);
  const Real all = row->ties + row->rest;
  row->rest =
      all * scale;  // 0, but nan where one was met: below -inf there is no other trace of it
  row->squares = empty ? 0 : (row->ties + row->squares) * scale * scale;
  row->spread = empty || scale == 0 ? 0 : (row->spread + step * all) * scale;
  row->ties = 0;
  row->largest = larger;
}

// The statistics of two parts of a row.
template <typename Real>
PE_HD RowStats<Real> merged(RowStats<Real> a, RowStats<Real> b) {
  const Real low = a.largest < b.largest ? a.largest : b.largest;
  const Real seconds = a.second > b.second ? a.second : b.second;
  const Real second = seconds > low ? seconds : low;
  if (a.largest < b.largest) raise_largest(&a, b.largest);
  if (b.largest < a.largest) raise_largest(&b, a.largest);
  return {a.largest,           a.ties + b.ties, a.rest + b.rest,   a.squares + b.squares,
          a.spread + b.spread, second,          a.total + b.total, a.weights + b.weights};
}

// One more logit, with its class weight. kFull: all sums, not only those of the plain loss.
template <bool kFull, typename Real>
PE_HD void add_logit(RowStats<Real>* row, Real logit, Real weight) {
  if (logit == row->largest) {
    row->ties += 1;
    row->second = row->largest;
  } else if (logit > row->largest) {
    row->second = row->largest;
    raise_largest(row, logit);
    row->ties = 1;
  } else {
    const Real below = row->largest - logit;
    if (!(below > 700)) {  // exp is 0 beyond, and 0 times inf no number; nan goes on
      const Real value = exp_of(-below);
      row->rest += value;
      if (kFull) {
        row->squares += value * value;
        row->spread += value * below;
      }
    }
    if (logit > row->second) row->second = logit;
  }
  if (kFull) {
    row->total += weight * logit;
    row->weights += weight;
  }
}

template <typename Real>
struct Smoothing {
  Real share;  // label smoothing: s
  int64_t num_classes;
};

// Whether a row needs more than the sums of the plain loss.
PE_HD bool needs_full(double smoothing, int64_t kind) {
  return smoothing != 0 || kind == kScoreEl2n || kind == kScoreMargin || kind == kScoreEntropy;
}

// w_y (1 - s) nll + s / C sum_c w_c (lse - z_c), as F.cross_entropy(reduction="none").
template <typename Real>
PE_HD Real row_loss(const RowStats<Real>& row, Real target_logit, Real target_weight,
                    const Smoothing<Real>& smoothing) {
  const Real log_sum = log1p_of(row.ties - 1 + row.rest);
  const Real nll = row.largest - target_logit + log_sum;
  if (!is_finite(row.largest)) return static_cast<Real>(NAN);  // inf, or nothing but -inf
  if (smoothing.share == 0) return target_weight * nll;
  const Real all = row.weights * (row.largest + log_sum) - row.total;
  return (1 - smoothing.share) * target_weight * nll +
         smoothing.share / static_cast<Real>(smoothing.num_classes) * all;
}

// What the gradient multiplies exp(z_c - m) by, before the incoming one: the weight of the softmax,
// w_y (1 - s) + s / C sum_c w_c, over the sum. nan where the row is not finite.
template <typename Real>
PE_HD Real row_factor(const RowStats<Real>& row, Real target_weight,
                      const Smoothing<Real>& smoothing) {
  if (!is_finite(row.largest)) return static_cast<Real>(NAN);
  const Real share = smoothing.share / static_cast<Real>(smoothing.num_classes);
  const Real weight = smoothing.share == 0
                          ? target_weight
                          : (1 - smoothing.share) * target_weight + share * row.weights;
  return weight / (row.ties + row.rest);
}

// What a row's gradient is made of: exp(z_c - largest) * scale - shift * w_c, less own at the
// target.
template <typename Real>
struct RowGradient {
  Real largest, scale, shift, own;
};

// stats: what cross_entropy_observe left, the largest logit and row_factor. upstream: the incoming
// gradient times the sample's weight.
template <typename Real>
PE_HD RowGradient<Real> row_gradient(const Real* stats, Real upstream, Real target_weight,
                                     const Smoothing<Real>& smoothing) {
  return {stats[0], upstream * stats[1],
          upstream * smoothing.share / static_cast<Real>(smoothing.num_classes),
          upstream * (1 - smoothing.share) * target_weight};
}

// The score: detached, unweighted, unsmoothed. nan where the row is not finite. To be rounded
// to float32, once.
template <typename Real>
PE_HD Real row_score(const RowStats<Real>& row, Real target_logit, int64_t kind, int64_t record,
                     int64_t epoch) {
  const Real sum = row.ties + row.rest;
  if (!is_finite(row.largest) || !is_finite(sum)) return static_cast<Real>(NAN);
  const Real others = row.ties - 1 + row.rest;  // all but one of the largest
  switch (kind) {
    case kScoreEl2n: {
      // || p - onehot ||^2 = (1 - p_y)^2 + sum of p_c^2 over c != y.
      const Real own = exp_of(target_logit - row.largest);
      const bool is_largest = target_logit == row.largest;
      const Real squares = row.ties - 1 + row.squares;
      const Real wrong = is_largest ? others : 1 + others - own;
      const Real wrong_squares = is_largest ? squares : 1 + squares - own * own;
      return sqrt_of(wrong * wrong + wrong_squares) / sum;
    }
    case kScoreMargin:
      return (others + exp_of(row.second - row.largest)) / sum;
    case kScoreLeastConfidence:
      return others / sum;
    case kScoreEntropy:
      return log1p_of(others) + row.spread / sum;
    case kScoreForgetting:
      return forgetting_score(record, target_logit == row.largest, epoch);
    default:
      return row.largest - target_logit + log1p_of(others);
  }
}

}  // namespace prune_engine
