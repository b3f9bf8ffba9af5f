// SPDX-License-Identifier: Apache-2.0
// top on the CPU: select finds the smallest key that stays, two more reads settle its ties by index
// and write the mask.
#include "../check.h"
#include "parallel.h"
#include "select.h"

namespace prune_engine {
namespace {

// The first settled samples of the block may stay where they tie with the edge.
PE_CLONES void mark_block(const uint32_t* key, int32_t size, uint32_t edge, int32_t settled,
                          uint8_t* mask) {
  for (int32_t i = 0; i < size; ++i) {
    const int tie = (key[i] == edge ? 1 : 0) & (i < settled ? 1 : 0);
    mask[i] = static_cast<uint8_t>((key[i] > edge ? 1 : 0) | tie);
  }
}

// How many samples, from the first on, hold just the ties that stay.
template <typename Sample>
int64_t settle(const Sample* samples, int64_t num_samples, const Found& found) {
  if (found.rank == 0) return num_samples;
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  std::vector<int32_t> ties(static_cast<size_t>(blocks));
  visit_keys(samples, num_samples, TorchThreads{}, [&](const auto& each_block) {
    each_block([&](int64_t block, const uint32_t* key, int32_t size) {
      ties[static_cast<size_t>(block)] = count_key(key, size, found.key);
    });
  });
  int64_t left = found.ties - found.rank, block = 0;
  while (left > ties[static_cast<size_t>(block)]) left -= ties[static_cast<size_t>(block++)];
  int64_t at = block * kPlanBlock;
  for (; left > 0; ++at) left -= sample_key(samples[at]) == found.key ? 1 : 0;
  return at;
}

template <typename Sample>
void top_samples(const Sample* samples, int64_t num_samples, int64_t k, uint8_t* mask) {
  std::vector<Found> found(1);
  // Rank seen - k: den of den is the last rank, and the offset counts back from it.
  const int64_t seen =
      k == 0 ? 0 : select_samples(samples, num_samples, {{1 - k, 1}}, 1, TorchThreads{}, &found);
  if (seen == 0) {
    std::fill_n(mask, num_samples, uint8_t{0});
    return;
  }
  const Found edge = found[0];
  const int64_t settled = settle(samples, num_samples, edge);
  visit_keys(samples, num_samples, TorchThreads{}, [&](const auto& each_block) {
    each_block([&](int64_t block, const uint32_t* key, int32_t size) {
      const int64_t begin = block * kPlanBlock;
      const auto here = static_cast<int32_t>(std::clamp<int64_t>(settled - begin, 0, size));
      mark_block(key, size, edge.key, here, mask + begin);
    });
  });
}

}  // namespace

Tensor top_cpu(Tensor values,  // [N] float32 scores or int64 records
               int64_t k) {
  check_top(values, k);
  const int64_t num_samples = values.numel();
  Tensor mask = torch::stable::new_empty(values, {num_samples}, ScalarType::Byte);
  uint8_t* out = mask.mutable_data_ptr<uint8_t>();
  if (values.scalar_type() == ScalarType::Long) {
    top_samples(values.const_data_ptr<int64_t>(), num_samples, k, out);
  } else {
    top_samples(values.const_data_ptr<float>(), num_samples, k, out);
  }
  return mask;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("top", TORCH_BOX(&prune_engine::top_cpu));
}
