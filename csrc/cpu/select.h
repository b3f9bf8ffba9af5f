// SPDX-License-Identifier: Apache-2.0
// Selection over any source of scores without sorting: select.cpp and top.cpp share it. Every rank
// has a window of keys that holds its answer, cut into 2048 bins. A pass counts the bins and the
// bin with the rank becomes the next window, until a bin is one key wide: 11 bits a pass, at most
// three reads of the samples. A sample of 16384 keys guesses a first window of about 3% of them,
// which saves a read, and which the counts confirm or refuse: a wrong guess costs time only.
//
// Sample is int64_t (a record) or float (a score, nan = never seen). Parallel: see plan.h.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>
#include <vector>

#include "../select.h"
#include "decide.h"

namespace prune_engine {

constexpr int64_t kSelectGrain = 16;    // blocks per task
constexpr int kCopies = 4;              // of the counts, so that equal neighbours do not wait
constexpr int64_t kGuessSize = 16384;   // keys of the sample
constexpr int64_t kWorthGuessing = 16;  // times as many samples
constexpr uint32_t kFirstKey = 1;
constexpr uint32_t kLastKey = 0xffffffffu;

// Keys first .. first + width, in bins of 2^shift.
struct Window {
  uint32_t first;
  uint32_t width;
  int shift;
};

inline Window make_window(uint32_t first, uint32_t last) {
  Window window = {first, last - first, 0};
  while (window.width >> window.shift >= kBins) ++window.shift;
  return window;
}

// What one rank has come to.
struct Found {
  uint32_t key;  // once the window is one key
  int64_t rank;  // among the samples of the window
  int64_t ties;  // samples of the key
};

struct Counts {
  int64_t unseen = 0;
  std::array<int64_t, kMaxRanks> below{};  // seen samples below each window
  // Of each rank; in copies, whose sum counts.
  std::vector<std::array<std::array<uint32_t, kBins>, kCopies>> bins;

  void add(const Counts& other) {
    unseen += other.unseen;
    for (size_t r = 0; r < bins.size(); ++r) {
      below[r] += other.below[r];
      for (int bin = 0; bin < kBins; ++bin) {
        for (int c = 0; c < kCopies; ++c) bins[r][0][bin] += other.bins[r][c][bin];
      }
    }
  }
};

// Marks the keys of a window and counts those below it.
PE_CLONES inline int32_t mark_window(const uint32_t* key, int32_t size, uint32_t first,
                                     uint32_t width, uint8_t* inside) {
  int32_t below = 0;
  for (int32_t i = 0; i < size; ++i) {
    inside[i] |= key[i] - first <= width ? 1 : 0;
    below += key[i] < first ? 1 : 0;
  }
  return below;
}

PE_CLONES inline int32_t count_key(const uint32_t* key, int32_t size, uint32_t wanted) {
  int32_t count = 0;
  for (int32_t i = 0; i < size; ++i) count += key[i] == wanted ? 1 : 0;
  return count;
}

// Moves the marked keys to the front; returns how many there are. Few are: eight are passed over
// at a time. inside has room for eight more, all zero.
inline int32_t gather_marked(const uint32_t* key, int32_t size, const uint8_t* inside,
                             uint32_t* gathered) {
  int32_t count = 0;
  for (int32_t i = 0; i < size; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, inside + i, sizeof eight);
    if (eight == 0) continue;
    for (int32_t e = i; e < i + 8; ++e) {
      gathered[count] = key[e];
      count += inside[e];
    }
  }
  return count;
}

// Counts the bins of one rank among the gathered keys.
inline void count_bins(const uint32_t* key, int32_t size, const Window& window, uint32_t* bin,
                       std::array<std::array<uint32_t, kBins>, kCopies>* counts) {
  int32_t count = 0;
  for (int32_t i = 0; i < size; ++i) {
    bin[count] = (key[i] - window.first) >> window.shift;
    count += key[i] - window.first <= window.width ? 1 : 0;
  }
  int32_t i = 0;
  for (; i + kCopies <= count; i += kCopies) {
    for (int c = 0; c < kCopies; ++c) ++(*counts)[c][bin[i + c]];
  }
  for (; i < count; ++i) ++(*counts)[0][bin[i]];
}

// Calls visit(block, keys, size) on every block of samples, on all threads.
template <typename Sample, typename Parallel, typename MakeVisit>
void visit_keys(const Sample* samples, int64_t num_samples, const Parallel& parallel,
                const MakeVisit& make_visit) {
  parallel(0, num_blocks(num_samples, kPlanBlock), kSelectGrain, [&](int64_t first, int64_t last) {
    std::vector<BlockScratch> scratch(1);
    make_visit([&](const auto& visit) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * kPlanBlock;
        const int32_t size = block_size(begin, num_samples);
        key_block(samples + begin, size, scratch.data());
        visit(block, scratch[0].key, size);
      }
    });
  });
}

// One read of the samples.
template <typename Sample, typename Parallel>
Counts count_windows(const Sample* samples, int64_t num_samples, const std::vector<Window>& windows,
                     const Parallel& parallel) {
  Counts total;
  total.bins.resize(windows.size());
  std::mutex guard;
  visit_keys(samples, num_samples, parallel, [&](const auto& each_block) {
    Counts part;
    part.bins.resize(windows.size());
    std::vector<uint32_t> some(kPlanBlock + 8), bin(kPlanBlock + 8);
    std::vector<uint8_t> inside(kPlanBlock + 8);
    each_block([&](int64_t, uint32_t* key, int32_t size) {
      std::fill(inside.begin(), inside.end(), uint8_t{0});
      const int32_t unseen = count_key(key, size, kNoKey);
      part.unseen += unseen;
      for (size_t r = 0; r < windows.size(); ++r) {
        part.below[r] +=
            mark_window(key, size, windows[r].first, windows[r].width, inside.data()) - unseen;
      }
      const int32_t count = gather_marked(key, size, inside.data(), some.data());
      for (size_t r = 0; r < windows.size(); ++r) {
        count_bins(some.data(), count, windows[r], bin.data(), &part.bins[r]);
      }
    });
    const std::lock_guard<std::mutex> lock(guard);
    total.add(part);
  });
  return total;
}

// A window for each rank in which it probably lies, four deviations to each side.
template <typename Sample>
std::vector<Window> guess_windows(const Sample* samples, int64_t num_samples,
                                  const std::vector<Rank>& ranks, int64_t den) {
  std::vector<Window> windows(ranks.size(), make_window(kFirstKey, kLastKey));
  if (num_samples < kWorthGuessing * kGuessSize) return windows;
  std::vector<uint32_t> keys;
  for (int64_t j = 0; j < kGuessSize; ++j) {
    const uint32_t key = sample_key(samples[j * num_samples / kGuessSize]);
    if (key != kNoKey) keys.push_back(key);
  }
  if (keys.empty()) return windows;
  const auto size = static_cast<double>(keys.size());
  const double seen = static_cast<double>(num_samples) * size / static_cast<double>(kGuessSize);
  for (size_t r = 0; r < ranks.size(); ++r) {
    const double share = static_cast<double>(ranks[r].num) / static_cast<double>(den) +
                         static_cast<double>(ranks[r].offset) / seen;
    const double middle = std::clamp(share, 0.0, 1.0) * size;
    const double margin = 4.0 * std::sqrt(middle * (1.0 - middle / size)) + 4.0;
    const auto low = static_cast<int64_t>(middle - margin);
    const auto high = static_cast<int64_t>(middle + margin);
    uint32_t first = kFirstKey, last = kLastKey;
    if (low > 0) {
      std::nth_element(keys.begin(), keys.begin() + low, keys.end());
      first = keys[static_cast<size_t>(low)];
    }
    if (high < static_cast<int64_t>(keys.size())) {
      std::nth_element(keys.begin(), keys.begin() + high, keys.end());
      last = keys[static_cast<size_t>(high)];
    }
    windows[r] = make_window(first, last);
  }
  return windows;
}

// Narrows a window to the bin of its rank; false where the rank is not in the window.
inline bool narrow_window(const std::array<uint32_t, kBins>& bins, Window* window, Found* found) {
  int64_t rank = found->rank;
  if (rank < 0) return false;
  for (int bin = 0; bin < kBins; ++bin) {
    if (rank >= bins[bin]) {
      rank -= bins[bin];
      continue;
    }
    found->key = window->first + (static_cast<uint32_t>(bin) << window->shift);
    found->rank = rank;
    found->ties = bins[bin];
    *window = make_window(found->key, found->key + ((1u << window->shift) - 1));
    return true;
  }
  return false;
}

// Finds the samples at some ranks. Returns how many have been seen; found is not written where
// none has.
template <typename Sample, typename Parallel>
int64_t select_samples(const Sample* samples, int64_t num_samples, const std::vector<Rank>& ranks,
                       int64_t den, const Parallel& parallel, std::vector<Found>* found) {
  std::vector<Window> windows = guess_windows(samples, num_samples, ranks, den);
  int64_t seen = -1;
  for (bool done = false; !done;) {
    const Counts counts = count_windows(samples, num_samples, windows, parallel);
    seen = num_samples - counts.unseen;
    if (seen == 0) return 0;
    done = true;
    for (size_t r = 0; r < ranks.size(); ++r) {
      // A window of one key has been answered, and the same counts answer it again.
      (*found)[r].rank = rank_of(ranks[r], den, seen) - counts.below[r];
      const bool one = windows[r].width == 0;
      if (!narrow_window(counts.bins[r][0], &windows[r], found->data() + r)) {
        windows[r] = make_window(kFirstKey, kLastKey);
        done = false;
      } else if (!one && windows[r].width != 0) {
        done = false;
      }
    }
  }
  return seen;
}

}  // namespace prune_engine
