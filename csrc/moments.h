// SPDX-License-Identifier: Apache-2.0
// Moments of a set of numbers that can be merged, and which blocks of a tensor a sample reads: what
// the kernels of every device share.
#pragma once

#include <cmath>
#include <cstdint>

#include "bijection.h"

namespace prune_engine {

constexpr int64_t kSampleBlock = 256;  // elements that a sample takes or leaves together

struct Moments {
  double count;
  double mean;
  double squares;  // sum of squared deviations from the mean
};

// Chan, Golub and LeVeque (1979). A part of count 0 changes nothing.
PE_HD Moments merge_moments(const Moments& a, const Moments& b) {
  if (b.count == 0.0) return a;
  if (a.count == 0.0) return b;
  const double count = a.count + b.count;
  const double share = b.count / count;
  const double delta = b.mean - a.mean;
  return {count, a.mean + delta * share, a.squares + b.squares + delta * delta * (a.count * share)};
}

// 0 / 0 = nan where there is no freedom.
PE_HD double std_of(const Moments& m, bool unbiased) {
  const double freedom = unbiased ? m.count - 1.0 : m.count;
  return sqrt(m.squares / (freedom > 0.0 ? freedom : 0.0));
}

// The one block that is read of the blocks [group * sample, (group + 1) * sample).
PE_HD int64_t sampled_block(int64_t group, int64_t sample, int64_t blocks) {
  const int64_t first = group * sample;
  const int64_t rest = blocks - first < sample ? blocks - first : sample;
  return first + static_cast<int64_t>(hash32(static_cast<uint32_t>(group), 0)) % rest;
}

}  // namespace prune_engine
