// SPDX-License-Identifier: Apache-2.0
// The forgetting score (Toneva et al., ICLR 2019): events + now / 4 + before / 16 in one float32,
// so that a record is all the memory it needs. prune_engine/scores.py says why; in integers, hence
// the same bits everywhere.
#pragma once

#include <cstdint>

#include "semantics.h"

namespace prune_engine {

constexpr int64_t kRight = 0;  // at its last presentation
constexpr int64_t kWrong = 1;
constexpr int64_t kNever = 2;  // wrong, and not learned so far
constexpr int64_t kMaxEvents = (1 << 20) - 1;

PE_HD int64_t clamp_events(int64_t events) {
  return events < 0 ? 0 : (events > kMaxEvents ? kMaxEvents : events);
}

// The score after one more presentation, from the record before it.
PE_HD float forgetting_score(int64_t record, bool correct, int64_t epoch) {
  int64_t start = kNever, events = 0;
  if (record != 0) {
    const float last = key_to_float(record_key(record));
    const float limit = static_cast<float>(kMaxEvents);
    const float inside = last > 0.0f ? (last < limit ? last : limit) : 0.0f;
    const int64_t packed = static_cast<int64_t>(inside * 16.0f);
    const int64_t state = (packed >> 2) & 3, before = packed & 3;
    // Presented in this epoch already: go back to where that started.
    const bool again = record_epoch(record) >= epoch;
    events = (packed >> 4) - (again && state == kWrong && before == kRight ? 1 : 0);
    start = again ? before : state;
    if (start > kNever) start = kNever;
  }
  const bool never = start == kNever;
  const int64_t wrong = never ? epoch + 1 : events + (start == kRight ? 1 : 0);
  const int64_t total = clamp_events(correct ? (never ? 0 : events) : wrong);
  const int64_t now = correct ? kRight : (never ? kNever : kWrong);
  return static_cast<float>((total << 4) + (now << 2) + start) / 16.0f;
}

}  // namespace prune_engine
