// SPDX-License-Identifier: Apache-2.0
// plan_levels on the CPU: one pass over the records, each sample in the class of its cell.
#include <optional>
#include <vector>

#include "../check.h"
#include "../levels.h"
#include "memory.h"
#include "parallel.h"
#include "plan.h"

#if PE_X86
#include <immintrin.h>
#endif

namespace prune_engine {
namespace {

// weight_class of a block from scratch->key and scratch->draw; returns how many are kept. A fate is
// a cut and the class it is of, looked up in a loop of its own: with the arithmetic of the class in
// the same loop neither is vectorised. unseen: the class of what was never seen.
PE_CLONES int64_t decide_levels(int32_t top, uint32_t unseen, const uint32_t* fates, int64_t size,
                                BlockScratch* scratch, uint8_t* weight_class) {
  const auto count = static_cast<int32_t>(size);
  uint32_t* fate = scratch->fate;
  const uint32_t* key = scratch->key;
  for (int32_t i = 0; i < count; ++i) {
    const auto cell = static_cast<int32_t>(key[i] >> kCellShift);
    constexpr auto first = static_cast<int32_t>(kFirstCell);
    const int32_t level = top + 1 - (cell > first ? cell : first);
    const int32_t above = level > 1 ? level : 1;
    const int32_t within = above < kNumClasses - 1 ? above : kNumClasses - 1;
    fate[i] = key[i] == kNoKey ? unseen : static_cast<uint32_t>(within);
  }
  for (int32_t i = 0; i < count; ++i) fate[i] = fates[fate[i]];
  return apply_fates(count, scratch, weight_class);
}

#if PE_X86
// The same without scratch: 32 samples at a time in 16-bit lanes, the 256 cuts in eight registers.
// Not where a cut is 65536, which has no 16 bits.
__attribute__((target("avx512f,avx512bw,avx512vl"))) int64_t
decide_levels_avx512(const int64_t* records, int32_t top, int32_t unseen, const uint16_t* cuts,
                     int64_t size, const uint16_t* draw, uint8_t* weight_class) {
  alignas(64) int32_t evens[16];
  alignas(64) int16_t odd_halves[32];
  for (int k = 0; k < 16; ++k) evens[k] = 2 * k;
  for (int k = 0; k < 32; ++k) odd_halves[k] = static_cast<int16_t>(2 * k + 1);
  const __m512i even = _mm512_load_si512(evens), odd_half = _mm512_load_si512(odd_halves);
  __m512i cut[8];
  for (int k = 0; k < 8; ++k) cut[k] = _mm512_loadu_si512(cuts + 32 * k);
  const __m512i one = _mm512_set1_epi16(1), last = _mm512_set1_epi16(kNumClasses - 1);
  const __m512i first = _mm512_set1_epi16(static_cast<int16_t>(kFirstCell));
  const __m512i above = _mm512_set1_epi16(static_cast<int16_t>(top + 1));
  const __m512i never = _mm512_set1_epi16(static_cast<int16_t>(unseen));
  int64_t kept = 0;
  for (int64_t i = 0; i < size; i += 32) {
    const __mmask32 there = size - i < 32 ? (__mmask32{1} << (size - i)) - 1 : ~__mmask32{0};
    __m512i key[2];
    for (int half = 0; half < 2; ++half) {
      const int64_t* from = records + i + 16 * half;
      const auto here = static_cast<__mmask16>(there >> (16 * half));
      const __m512i front = _mm512_maskz_loadu_epi64(static_cast<__mmask8>(here), from);
      const __m512i back = _mm512_maskz_loadu_epi64(static_cast<__mmask8>(here >> 8), from + 8);
      key[half] = _mm512_permutex2var_epi32(front, even, back);
    }
    const __mmask32 seen = _mm512_test_epi32_mask(key[0], key[0]) |
                           static_cast<__mmask32>(_mm512_test_epi32_mask(key[1], key[1])) << 16;
    const __m512i cell =
        _mm512_srli_epi16(_mm512_permutex2var_epi16(key[0], odd_half, key[1]), kCellShift - 16);
    __m512i level = _mm512_sub_epi16(above, _mm512_max_epi16(cell, first));
    level = _mm512_min_epi16(_mm512_max_epi16(level, one), last);
    level = _mm512_mask_mov_epi16(never, seen, level);
    const __mmask32 odd = _mm512_test_epi16_mask(level, _mm512_set1_epi16(64));
    const __mmask32 upper = _mm512_test_epi16_mask(level, _mm512_set1_epi16(128));
    __m512i quarter[4];
    for (int k = 0; k < 4; ++k) {
      quarter[k] = _mm512_permutex2var_epi16(cut[2 * k], level, cut[2 * k + 1]);
    }
    const __m512i mine =
        _mm512_mask_mov_epi16(_mm512_mask_mov_epi16(quarter[0], odd, quarter[1]), upper,
                              _mm512_mask_mov_epi16(quarter[2], odd, quarter[3]));
    const __m512i drawn = _mm512_loadu_si512(draw + i);
    const __mmask32 stays = _mm512_mask_cmpge_epu16_mask(there, drawn, mine);
    const __m256i classes = _mm512_maskz_cvtepi16_epi8(stays, level);
    _mm256_mask_storeu_epi8(weight_class + i, there, classes);
    kept += __builtin_popcount(stays);
  }
  return kept;
}
#endif

int32_t cell_in(const Tensor& tensor, const char* name) {
  const int32_t cell = tensor.const_data_ptr<int32_t>()[0];
  STD_TORCH_CHECK(cell >= kFirstCell && cell <= first_top(kHighestTheta) + 16, name,
                  " must be a cell in 4112..8448, got ", cell);
  return cell;
}

}  // namespace

Tensor plan_levels_cpu(Tensor records,  // [N] int64
                       Tensor top,      // [1] int32
                       Tensor cut,      // [256] int32
                       int64_t seed, int64_t epoch,
                       Tensor weight_class,  // [N] uint8, changed
                       int64_t first,
                       std::optional<Tensor> unseen) {  // [1] int32, or none: top
  check_plan_levels(records, top, unseen.value_or(top), cut, seed, epoch, weight_class, first);
  uint32_t fates[kNumClasses];
  uint16_t cuts[kNumClasses];
  bool narrow = true;  // cuts of 16 bits; nobody is of class 0
  for (int k = 0; k < kNumClasses; ++k) {
    const int32_t mine = cut.const_data_ptr<int32_t>()[k];
    STD_TORCH_CHECK(mine >= 0 && mine <= kDraws, "cut must be in 0..65536, got ", mine);
    fates[k] = make_fate(static_cast<uint32_t>(mine), static_cast<uint8_t>(k));
    cuts[k] = static_cast<uint16_t>(mine);
    narrow = narrow && (k == 0 || mine < kDraws);
  }
  const int32_t highest = cell_in(top, "top");
  const int32_t never = level_of(cell_in(unseen.value_or(top), "unseen"), highest);
  const int64_t num_samples = records.numel();
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  Tensor block_offsets = torch::stable::new_empty(records, {blocks + 1}, ScalarType::Long);
  const int64_t* all_records = records.const_data_ptr<int64_t>();
  uint8_t* out = weight_class.mutable_data_ptr<uint8_t>();
  int64_t* offsets = block_offsets.mutable_data_ptr<int64_t>();
  prefer_huge_pages(out, static_cast<size_t>(num_samples));

  TorchThreads{}(0, blocks, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<BlockScratch> scratch(1);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t at = block * kPlanBlock;
      const int64_t size = block_size(at, num_samples);
      draw_block(first + at, static_cast<uint64_t>(seed), static_cast<uint32_t>(epoch),
                 scratch[0].draw);
#if PE_X86
      if (narrow && has_avx512()) {
        offsets[block] = decide_levels_avx512(all_records + at, highest, never, cuts, size,
                                              scratch[0].draw, out + at);
        continue;
      }
#endif
      key_block(all_records + at, size, scratch.data());
      offsets[block] = decide_levels(highest, static_cast<uint32_t>(never), fates, size,
                                     scratch.data(), out + at);
    }
  });
  offsets_of_counts(offsets, blocks);
  return block_offsets;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("plan_levels", TORCH_BOX(&prune_engine::plan_levels_cpu));
}
