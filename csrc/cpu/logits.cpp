// SPDX-License-Identifier: Apache-2.0
#include "logits.h"

#include "dispatch.h"

namespace prune_engine {
namespace {

constexpr int kLanes = 16;
constexpr float kLowest = -INFINITY;

// exp(x) for x <= 0, in operations that every vector unit has: 2^n times a polynomial on
// [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients, about 1 unit in the last place); 0 below -87.
PE_HD float exp_below(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  const float inside = x < -87.0f ? -87.0f : x;
  const float shifted = inside * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = inside - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scale = bits_float((float_bits(shifted) - 0x4b400000u + 127u) << 23);
  return x < -87.0f ? 0.0f : p * scale;
}

PE_HD float lane_sum(const float* lane) {
  float sum[kLanes];
  for (int l = 0; l < kLanes; ++l) sum[l] = lane[l];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  }
  return sum[0];
}

struct LaneStats {
  float ties[kLanes], rest[kLanes], squares[kLanes], spread[kLanes], second[kLanes];
};

template <bool kFull>
PE_HD void add_lane(LaneStats* lanes, int l, float z, float largest) {
  const bool tie = z == largest;
  const float value = tie ? 0.0f : exp_below(z - largest);
  lanes->ties[l] += tie ? 1.0f : 0.0f;
  lanes->rest[l] += value;
  if (kFull) {
    const float below = largest - z;
    lanes->squares[l] += value * value;
    lanes->spread[l] += below > 87.0f ? 0.0f : value * below;
    const float other = tie ? kLowest : z;
    lanes->second[l] = other > lanes->second[l] ? other : lanes->second[l];
  }
}

template <bool kFull>
PE_HD void add_block(const float* z, int64_t count, float largest, LaneStats* lanes) {
  for (int l = 0; l < kLanes; ++l) {
    lanes->ties[l] = lanes->rest[l] = lanes->squares[l] = lanes->spread[l] = 0.0f;
    lanes->second[l] = kLowest;
  }
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    for (int l = 0; l < kLanes; ++l) add_lane<kFull>(lanes, l, z[c + l], largest);
  }
  for (int l = 0; c < count; ++c, ++l) add_lane<kFull>(lanes, l, z[c], largest);
}

PE_CLONES void add_plain(const float* z, int64_t count, float largest, LaneStats* lanes) {
  add_block<false>(z, count, largest, lanes);
}

PE_CLONES void add_full(const float* z, int64_t count, float largest, LaneStats* lanes) {
  add_block<true>(z, count, largest, lanes);
}

PE_CLONES float largest_of(const float* z, int64_t count) {
  float lane[kLanes];
  for (int l = 0; l < kLanes; ++l) lane[l] = kLowest;
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    for (int l = 0; l < kLanes; ++l) lane[l] = z[c + l] > lane[l] ? z[c + l] : lane[l];
  }
  for (int l = 0; c < count; ++c, ++l) lane[l] = z[c] > lane[l] ? z[c] : lane[l];
  float largest = lane[0];
  for (int l = 1; l < kLanes; ++l) largest = lane[l] > largest ? lane[l] : largest;
  return largest;
}

PE_CLONES float weighted_sum(const float* z, const float* weights, int64_t count) {
  float lane[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    for (int l = 0; l < kLanes; ++l) lane[l] += weights[c + l] * z[c + l];
  }
  for (int l = 0; c < count; ++c, ++l) lane[l] += weights[c] * z[c];
  return lane_sum(lane);
}

PE_CLONES float plain_sum(const float* z, int64_t count) {
  float lane[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    for (int l = 0; l < kLanes; ++l) lane[l] += z[c + l];
  }
  for (int l = 0; c < count; ++c, ++l) lane[l] += z[c];
  return lane_sum(lane);
}

}  // namespace

PE_CLONES void widen_block(const torch::headeronly::BFloat16* from, int64_t count, float* to) {
  for (int64_t c = 0; c < count; ++c) {
    to[c] = bits_float(static_cast<uint32_t>(from[c].x) << 16);
  }
}

PE_CLONES void widen_block(const torch::headeronly::Half* from, int64_t count, float* to) {
  for (int64_t c = 0; c < count; ++c) to[c] = static_cast<float>(from[c]);
}

PE_CLONES void narrow_block(const float* from, int64_t count, torch::headeronly::BFloat16* to) {
  for (int64_t c = 0; c < count; ++c) {
    const uint32_t bits = float_bits(from[c]);
    const uint32_t even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t rounded = is_nan_bits(bits) ? (bits >> 16) | 0x40u : even;
    to[c].x = static_cast<uint16_t>(rounded);
  }
}

PE_CLONES void narrow_block(const float* from, int64_t count, torch::headeronly::Half* to) {
  for (int64_t c = 0; c < count; ++c) to[c] = static_cast<torch::headeronly::Half>(from[c]);
}

RowStats<float> block_stats(const float* logits, const float* weights, int64_t count, bool full) {
  LaneStats lanes;
  const float largest = largest_of(logits, count);
  RowStats<float> row = no_stats<float>();
  row.largest = largest;
  if (full) {
    add_full(logits, count, largest, &lanes);
    row.squares = lane_sum(lanes.squares);
    row.spread = lane_sum(lanes.spread);
    for (int l = 0; l < kLanes; ++l) {
      row.second = lanes.second[l] > row.second ? lanes.second[l] : row.second;
    }
    row.total = weights ? weighted_sum(logits, weights, count) : plain_sum(logits, count);
    row.weights = weights ? plain_sum(weights, count) : static_cast<float>(count);
  } else {
    add_plain(logits, count, largest, &lanes);
  }
  row.ties = lane_sum(lanes.ties);
  row.rest = lane_sum(lanes.rest);
  if (row.ties > 1) row.second = largest;
  return row;
}

PE_CLONES void gradient_block(const float* logits, const float* weights, int64_t count,
                              float largest, float scale, float shift, float* out) {
  if (weights != nullptr) {
    for (int64_t c = 0; c < count; ++c) {
      out[c] = exp_below(logits[c] - largest) * scale - shift * weights[c];
    }
  } else {
    for (int64_t c = 0; c < count; ++c) out[c] = exp_below(logits[c] - largest) * scale - shift;
  }
}

}  // namespace prune_engine
