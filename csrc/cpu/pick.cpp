// SPDX-License-Identifier: Apache-2.0
// pick on the CPU: keys and sizes, Newton's loop for the certain ones, the walk in blocks whose
// sums say where each begins on the line, and the chosen in ascending order.
#include "../pick.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <tuple>

#include "../check.h"
#include "memory.h"
#include "order.h"
#include "parallel.h"

namespace prune_engine {
namespace {

constexpr int64_t kPickBlock = 4096;
constexpr int64_t kPickGrain = 4;  // blocks per task

// A flag of an element: it is chosen, or fills up by index as far as there is room.
constexpr uint8_t kLeftOut = 0, kChosen = 1, kSpare = 2;

template <typename Value>
std::unique_ptr<Value[]> room(int64_t count) {  // uninitialised
  std::unique_ptr<Value[]> made(new Value[static_cast<size_t>(count)]);
  prefer_huge_pages(made.get(), static_cast<size_t>(count) * sizeof(Value));
  return made;
}

// Calls body(block, begin, size) for every block, on all threads.
template <typename Body>
void for_blocks(int64_t count, const Body& body) {
  if (count <= kPickBlock) return body(0, 0, count);  // a call of the threads takes microseconds
  TorchThreads{}(0, num_blocks(count, kPickBlock), kPickGrain, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kPickBlock;
      body(block, begin, std::min(kPickBlock, count - begin));
    }
  });
}

// Of some elements: how many, and the sum of their sizes.
struct Share {
  int64_t count, sum;
};

PE_CLONES Share key_block(const float* value, int64_t size, uint32_t* key, uint32_t* largest) {
  int64_t eligible = 0;
  uint32_t high = kNoKey;
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t mine = eligible_key(value[i]);
    key[i] = mine;
    eligible += mine != kNoKey ? 1 : 0;
    high = mine > high ? mine : high;
  }
  *largest = high;
  return {eligible, 0};
}

PE_CLONES void size_block(const uint32_t* key, int64_t count, const PickSizes& sizes,
                          int64_t* size) {
  const PickSizes held = sizes;  // which no result can change
  for (int64_t i = 0; i < count; ++i) size[i] = size_of_key(key[i], held);
}

PE_CLONES Share above_block(const int64_t* size, int64_t count, int64_t edge) {
  Share share = {0, 0};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t above = size[i] > edge ? -1 : 0;
    share.count -= above;
    share.sum += size[i] & above;
  }
  return share;
}

void rank_flags(const uint32_t* key, int64_t size, uint32_t edge, uint8_t* flag) {
  for (int64_t i = 0; i < size; ++i) {
    flag[i] = static_cast<uint8_t>((key[i] >= edge ? kChosen : 0) + (key[i] == edge ? 1 : 0));
  }
}
static_assert(kSpare == kChosen + 1, "as rank_flags adds them up");

class Picker {
 public:
  Picker(const float* values, int64_t count, int64_t k)
      : count_(count),
        k_(k),
        shares_(room<Share>(num_blocks(count, kPickBlock) + 1)),
        key_(room<uint32_t>(count)),
        flag_(room<uint8_t>(count)) {
    auto largest = room<uint32_t>(num_blocks(count, kPickBlock));
    for_blocks(count, [&](int64_t block, int64_t begin, int64_t size) {
      shares_[block] = key_block(values + begin, size, key_.get() + begin, largest.get() + block);
    });
    eligible_ = total().count;
    largest_ = *std::max_element(largest.get(), largest.get() + num_blocks(count, kPickBlock));
  }

  int64_t eligible() const { return eligible_; }

  // The k largest keys, ties to the smaller index; everyone, where no more are eligible, and then
  // the first of the others.
  void choose_largest() {
    const int64_t wanted = std::min(k_, count_);
    uint32_t edge = kNoKey;
    if (eligible_ > wanted) {
      auto copy = room<uint32_t>(count_);
      std::copy_n(key_.get(), count_, copy.get());
      std::nth_element(copy.get(), copy.get() + wanted - 1, copy.get() + count_,
                       std::greater<uint32_t>());
      edge = copy[wanted - 1];
    }
    for_blocks(count_, [&](int64_t, int64_t begin, int64_t size) {
      rank_flags(key_.get() + begin, size, edge, flag_.get() + begin);
    });
  }

  // Each eligible element with the probability of its size. More than k are eligible.
  void choose_by_size(int rule, int64_t floor, const PickKey& draw) {
    size_ = room<int64_t>(count_);
    PickSizes sizes = make_pick_sizes(rule, count_, largest_);
    make_sizes(sizes);
    if (sizes.equal) {
      caps_ = {eligible_, k_, eligible_ / k_};
    } else {
      caps_ = find_caps();
      if (floor > 0) {
        sizes.least = least_size(caps_, k_, eligible_, floor);
        make_sizes(sizes);
        caps_ = find_caps();
      }
    }
    take_walk(draw);
    mark_points(make_line(caps_, pick_words(draw, kPickStartCall)));
  }

  // Writes min(k, count) of each.
  void write(int32_t* indices, float* weights) {
    for_blocks(count_, [&](int64_t block, int64_t begin, int64_t size) {
      const uint8_t* flag = flag_.get() + begin;
      shares_[block] = {std::count(flag, flag + size, kChosen),
                        std::count(flag, flag + size, kSpare)};
    });
    const int64_t room_left = std::min(k_, count_) - total().count;
    exclusive();
    for_blocks(count_, [&](int64_t block, int64_t begin, int64_t size) {
      int64_t spare = shares_[block].sum;
      int64_t at = shares_[block].count + std::min(spare, room_left);
      for (int64_t i = begin; i < begin + size; ++i) {
        if (flag_[i] == kLeftOut || (flag_[i] == kSpare && spare++ >= room_left)) continue;
        indices[at] = static_cast<int32_t>(i);
        weights[at++] = weight(i);
      }
    });
  }

 private:
  Share total() const {
    Share sum = {0, 0};
    for (int64_t block = 0; block < num_blocks(count_, kPickBlock); ++block) {
      sum.count += shares_[block].count;
      sum.sum += shares_[block].sum;
    }
    return sum;
  }

  // Turns the shares of the blocks into those of all blocks before.
  void exclusive() {
    Share before = {0, 0};
    for (int64_t block = 0; block < num_blocks(count_, kPickBlock); ++block) {
      const Share mine = shares_[block];
      shares_[block] = before;
      before = {before.count + mine.count, before.sum + mine.sum};
    }
  }

  void make_sizes(const PickSizes& sizes) {
    for_blocks(count_, [&](int64_t, int64_t begin, int64_t size) {
      size_block(key_.get() + begin, size, sizes, size_.get() + begin);
    });
  }

  Share above(int64_t edge) {
    for_blocks(count_, [&](int64_t block, int64_t begin, int64_t size) {
      shares_[block] = above_block(size_.get() + begin, size, edge);
    });
    return total();
  }

  // Newton's method from above: the edge falls, so what is certain once stays so.
  PickCaps find_caps() {
    const int64_t sum = above(0).sum;
    PickCaps caps = {sum, k_, sum / k_};
    for (;;) {
      const Share certain = above(caps.edge);
      if (k_ - certain.count == caps.left) return caps;
      caps.area = sum - certain.sum;
      caps.left = k_ - certain.count;
      caps.edge = caps.area / caps.left;
    }
  }

  // The walk, and by block of it the sum of the sizes that are not certain.
  void take_walk(const PickKey& draw) {
    Bijection pi;
    set_grid(static_cast<uint64_t>(count_), kWalkLimit, &pi);
    for (int call = 0; call < pi.rounds / 4; ++call) {
      make_round_keys(draw, static_cast<uint32_t>(call), &pi);
    }
    walk_ = room<uint32_t>(count_);
    for_blocks(count_, [&](int64_t block, int64_t begin, int64_t size) {
      uint32_t position[kOrderBlock];
      int64_t sum = 0;
      for (int64_t at = begin; at < begin + size; at += kOrderBlock) {
        const auto part = static_cast<int32_t>(std::min(kOrderBlock, begin + size - at));
        uint32_t* rank = walk_.get() + at;
        for (int32_t j = 0; j < part; ++j) position[j] = static_cast<uint32_t>(at + j);
        rank_block(pi, position, part, rank);
        walk_block(pi, part, rank);
        for (int32_t j = 0; j < part; ++j) {
          const int64_t mine = size_[rank[j]];
          sum += mine > caps_.edge ? 0 : mine;
        }
      }
      shares_[block] = {0, sum};
    });
    exclusive();
  }

  // Chooses who is certain, and on whose piece of the line a point lies.
  void mark_points(const PickLine& line) {
    for_blocks(count_, [&](int64_t block, int64_t begin, int64_t size) {
      int64_t place = shares_[block].sum, t = points_below(line, place);
      int64_t next = t < line.left ? point_of(line, t) : INT64_MAX;
      for (int64_t j = begin; j < begin + size; ++j) {
        const uint32_t i = walk_[j];
        const int64_t mine = size_[i];
        const bool certain = mine > caps_.edge;
        place += certain ? 0 : mine;
        const bool met = next < place;
        flag_[i] = certain || met ? kChosen : kLeftOut;
        if (met) next = ++t < line.left ? point_of(line, t) : INT64_MAX;
      }
    });
  }

  float weight(int64_t i) const {
    if (size_ == nullptr) return key_[i] != kNoKey ? 1.0f : 0.0f;
    return pick_weight(size_[i], caps_);
  }

  int64_t count_, k_, eligible_ = 0;
  uint32_t largest_ = kNoKey;
  std::unique_ptr<Share[]> shares_;  // one per block
  std::unique_ptr<uint32_t[]> key_, walk_;
  std::unique_ptr<int64_t[]> size_;
  std::unique_ptr<uint8_t[]> flag_;
  PickCaps caps_ = {0, 1, 0};
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> pick_cpu(Tensor values,  // [B] float32
                                            int64_t k, int64_t rule, int64_t floor, int64_t seed,
                                            Tensor epoch,  // [1] int64
                                            Tensor step,   // [1] int64
                                            int64_t rank, int64_t site) {
  check_pick(values, k, rule, floor, seed, epoch, step, rank, site);
  const int64_t count = values.numel(), size = std::min(k, count);
  Tensor indices = torch::stable::new_empty(values, {size}, ScalarType::Int);
  Tensor weights = torch::stable::new_empty(values, {size}, ScalarType::Float);
  Tensor eligible = torch::stable::new_empty(values, {1}, ScalarType::Long);
  int64_t* found = eligible.mutable_data_ptr<int64_t>();
  *found = 0;
  if (count > 0) {  // Edge case 1
    Picker picker(values.const_data_ptr<float>(), count, k);
    *found = picker.eligible();
    if (size == 0) return {indices, weights, eligible};
    if (rule == kPickTop || *found <= size) {
      picker.choose_largest();
    } else {
      const PickKey draw = make_pick_key(seed, epoch.const_data_ptr<int64_t>(),
                                         step.const_data_ptr<int64_t>(), rank, site);
      picker.choose_by_size(static_cast<int>(rule), floor, draw);
    }
    picker.write(indices.mutable_data_ptr<int32_t>(), weights.mutable_data_ptr<float>());
  }
  return {indices, weights, eligible};
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("pick", TORCH_BOX(&prune_engine::pick_cpu));
}
