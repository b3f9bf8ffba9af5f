// SPDX-License-Identifier: Apache-2.0
// draw on the CPU: one Philox call per index, in a loop that compilers vectorise.
#include <atomic>

#include "../check.h"
#include "../philox.h"
#include "dispatch.h"
#include "memory.h"
#include "parallel.h"

namespace prune_engine {
namespace {

PE_CLONES bool draw_range(const int64_t* indices, int64_t begin, int64_t end, uint64_t seed,
                          uint32_t epoch, uint32_t stream, int64_t* drawn) {
  bool valid = true;
  for (int64_t m = begin; m < end; ++m) {
    valid &= static_cast<uint64_t>(indices[m]) <= static_cast<uint64_t>(kMaxIndex);
    drawn[m] = stream_draw(static_cast<uint64_t>(indices[m]), seed, epoch, stream);
  }
  return valid;
}

}  // namespace

Tensor draw_cpu(Tensor indices,  // [M] int64
                int64_t seed, int64_t epoch, int64_t stream) {
  check_draw(indices, seed, epoch, stream);
  const int64_t count = indices.numel();
  Tensor result = torch::stable::new_empty(indices, {count});
  const int64_t* from = indices.const_data_ptr<int64_t>();
  int64_t* to = result.mutable_data_ptr<int64_t>();
  prefer_huge_pages(to, static_cast<size_t>(count) * sizeof(int64_t));
  std::atomic<bool> valid{true};
  TorchThreads{}(0, count, 16384, [&](int64_t begin, int64_t end) {
    if (!draw_range(from, begin, end, static_cast<uint64_t>(seed), static_cast<uint32_t>(epoch),
                    static_cast<uint32_t>(stream), to)) {
      valid = false;
    }
  });
  STD_TORCH_CHECK(valid, "IndexError: indices must be in 0..2^62");
  return result;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("draw", TORCH_BOX(&prune_engine::draw_cpu));
}
