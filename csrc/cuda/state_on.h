// SPDX-License-Identifier: Apache-2.0
// The score state on a device, for the operators that change it.
#pragma once

#include "on_device.h"

namespace prune_engine {

// device: that of records.
inline ScoreState state_on(const OnDevice& device, Tensor& records, Tensor& score_sum,
                           Tensor& counters, const Tensor& weight_class, const Tensor& weight_table,
                           const Tensor& epoch) {
  device.check({{score_sum, "score_sum"},
                {counters, "counters"},
                {weight_class, "weight_class"},
                {weight_table, "weight_table"},
                {epoch, "epoch"}});
  return make_state(records, score_sum, counters, weight_class, weight_table, epoch);
}

}  // namespace prune_engine
