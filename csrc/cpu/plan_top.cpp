// SPDX-License-Identifier: Apache-2.0
// plan_top on the CPU: one pass over the records. A sample of up to 32768 guesses the three per
// cent of ranks among which the edge lies: above them everybody in the pool stays, and those within
// are listed and settled at the end. The counts confirm the guess or refuse it: then all are
// listed.
#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>
#include <vector>

#include "../check.h"
#include "decide.h"
#include "memory.h"
#include "parallel.h"

#if PE_X86
#include <immintrin.h>
#endif

namespace prune_engine {
namespace {

constexpr int64_t kGrain = 16;           // blocks per task
constexpr int64_t kMostGuesses = 32768;  // samples that guess: few, next to those they spare
constexpr int64_t kWorthGuessing = 16;   // as many times as many samples
constexpr int64_t kFewSamples = 65536;   // are listed without a guess
constexpr int64_t kManyTies = 16384;     // of a task

struct Contest {
  const int64_t* records;
  int64_t num_samples, k;
  uint32_t cut;
  uint64_t seed;
  uint32_t epoch;
};

// EdgeRanks first .. last; whoever is above them stays.
struct EdgeRanks {
  uint32_t first, last;
};

struct Listed {
  uint32_t rank;
  int32_t index;
};

// What a pass found.
struct Judged {
  int64_t pool = 0, above = 0;
  std::vector<Listed> listed;
};

inline uint32_t rank_of_key(uint32_t key) { return key == kNoKey ? kUnseenFirst : key; }

EdgeRanks guess_ranks(const Contest& contest) {
  const EdgeRanks all = {1, kUnseenFirst};
  if (contest.num_samples < kFewSamples) return all;
  const int64_t guesses = std::min(kMostGuesses, contest.num_samples / kWorthGuessing);
  // Without a branch: every record is read, far apart as they are, before the first has come.
  std::vector<uint32_t> rank(static_cast<size_t>(guesses));
  size_t drawn = 0;
  for (int64_t j = 0; j < guesses; ++j) {
    const int64_t index = j * contest.num_samples / guesses;
    rank[drawn] = rank_of_key(record_key(contest.records[index]));
    const uint32_t draw = keep_draw(static_cast<uint64_t>(index), contest.seed, contest.epoch);
    drawn += draw < contest.cut ? 0 : 1;
  }
  rank.resize(drawn);
  if (rank.empty()) return all;
  const auto size = static_cast<double>(rank.size());
  const double entered = 1.0 - contest.cut / static_cast<double>(kDraws);
  const double pool = entered * static_cast<double>(contest.num_samples);
  const double middle = std::min(static_cast<double>(contest.k) / pool, 1.0) * size;
  const double margin = 4.0 * std::sqrt(middle * (1.0 - middle / size)) + 4.0;
  const auto high = static_cast<int64_t>(middle - margin);
  const auto low = static_cast<int64_t>(middle + margin);
  EdgeRanks guess = all;
  const auto larger = std::greater<uint32_t>();
  if (high > 0) {
    std::nth_element(rank.begin(), rank.begin() + high, rank.end(), larger);
    guess.last = rank[static_cast<size_t>(high)];
  }
  if (low < static_cast<int64_t>(rank.size())) {
    std::nth_element(rank.begin(), rank.begin() + low, rank.end(), larger);
    guess.first = rank[static_cast<size_t>(low)];
  }
  return guess;
}

// scratch->fate of the block: its ranks, 0 outside the pool. Selects, and no branches, as in
// decide.h. Returns the size of the pool.
PE_CLONES int32_t rank_block(int32_t size, uint32_t cut, BlockScratch* scratch) {
  uint32_t* rank = scratch->fate;
  const uint32_t* key = scratch->key;
  uint32_t pool = 0;
  for (int32_t i = 0; i < size; ++i) {
    const uint32_t known = key[i] == kNoKey ? kUnseenFirst : key[i];
    const uint32_t mine = scratch->draw[i] < cut ? 0 : known;
    rank[i] = mine;
    pool += mine != 0 ? 1 : 0;
  }
  return static_cast<int32_t>(pool);
}

// Writes the classes of those above; returns how many they are.
PE_CLONES int32_t class_block(const uint32_t* rank, int32_t size, uint32_t last,
                              uint8_t* weight_class) {
  int32_t above = 0;
  for (int32_t i = 0; i < size; ++i) {
    const int stays = rank[i] > last ? 1 : 0;
    weight_class[i] = static_cast<uint8_t>(stays);
    above += stays;
  }
  return above;
}

PE_CLONES void mark_within(const uint32_t* rank, int32_t size, EdgeRanks ranks, uint8_t* within) {
  const uint32_t first = ranks.first, width = ranks.last - ranks.first;
  for (int32_t i = 0; i < size; ++i) within[i] = rank[i] - first <= width ? 1 : 0;
}

// Lists the marked samples of a block; few are, so eight are passed over at a time. within has
// room for eight more, all zero.
void list_block(const uint32_t* rank, int32_t size, const uint8_t* within, int64_t begin,
                std::vector<Listed>* listed) {
  for (int32_t i = 0; i < size; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, within + i, sizeof eight);
    if (eight == 0) continue;
    for (int32_t e = i; e < i + 8; ++e) {
      if (within[e] == 0) continue;
      listed->push_back({rank[e], static_cast<int32_t>(begin + e)});
    }
  }
}

// What judging a block comes to, apart from the classes and the list.
struct Judgement {
  int32_t pool, above;
};

// One block from its draws, in scratch.
Judgement judge_block(const Contest& contest, EdgeRanks ranks, int64_t begin, int32_t size,
                      BlockScratch* scratch, uint8_t* weight_class, std::vector<Listed>* listed) {
  uint8_t within[kPlanBlock + 8];
  key_block(contest.records + begin, size, scratch);
  const int32_t pool = rank_block(size, contest.cut, scratch);
  const uint32_t* rank = scratch->fate;
  const int32_t above = class_block(rank, size, ranks.last, weight_class + begin);
  std::memset(within + size, 0, 8);
  mark_within(rank, size, ranks, within);
  list_block(rank, size, within, begin, listed);
  return {pool, above};
}

#if PE_X86
// The same in one pass, 16 samples at a time.
__attribute__((target("avx512f,avx512bw,avx512vl"))) Judgement
judge_block_avx512(const Contest& contest, EdgeRanks ranks, int64_t begin, int32_t size,
                   BlockScratch* scratch, uint8_t* weight_class, std::vector<Listed>* listed) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i even = _mm512_add_epi32(lane, lane);
  const __m512i cut = _mm512_set1_epi32(static_cast<int32_t>(contest.cut));
  const __m512i unseen = _mm512_set1_epi32(static_cast<int32_t>(kUnseenFirst));
  const __m512i last = _mm512_set1_epi32(static_cast<int32_t>(ranks.last));
  const __m512i first = _mm512_set1_epi32(static_cast<int32_t>(ranks.first));
  uint32_t* rank_within = scratch->key;
  uint32_t* place_within = scratch->fate;
  int32_t pool = 0, above = 0, count = 0;
  for (int32_t i = 0; i < size; i += 16) {
    const auto there = static_cast<__mmask16>(size - i < 16 ? (1 << (size - i)) - 1 : 0xffff);
    const int64_t* from = contest.records + begin + i;
    const __m512i front = _mm512_maskz_loadu_epi64(static_cast<__mmask8>(there), from);
    const __m512i back = _mm512_maskz_loadu_epi64(static_cast<__mmask8>(there >> 8), from + 8);
    const __m512i key = _mm512_permutex2var_epi32(front, even, back);
    const __m512i rank = _mm512_mask_mov_epi32(unseen, _mm512_test_epi32_mask(key, key), key);
    const auto* draws = reinterpret_cast<const __m256i*>(scratch->draw + i);
    const __m512i draw = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(draws));
    const __mmask16 drawn = _mm512_mask_cmpge_epu32_mask(there, draw, cut);
    const __mmask16 stays = _mm512_mask_cmpgt_epu32_mask(drawn, rank, last);
    const __mmask16 within =
        _mm512_mask_cmpge_epu32_mask(static_cast<__mmask16>(drawn & ~stays), rank, first);
    _mm_mask_storeu_epi8(weight_class + begin + i, there, _mm_maskz_set1_epi8(stays, 1));
    // Never beyond the scratch: at most i were listed before.
    const __m512i place = _mm512_add_epi32(lane, _mm512_set1_epi32(i));
    _mm512_storeu_si512(rank_within + count, _mm512_maskz_compress_epi32(within, rank));
    _mm512_storeu_si512(place_within + count, _mm512_maskz_compress_epi32(within, place));
    pool += __builtin_popcount(drawn);
    above += __builtin_popcount(stays);
    count += __builtin_popcount(within);
  }
  for (int32_t e = 0; e < count; ++e) {
    listed->push_back({rank_within[e], static_cast<int32_t>(begin + place_within[e])});
  }
  return {pool, above};
}
#endif

// Blocks first .. last - 1.
Judged judge_blocks(const Contest& contest, EdgeRanks ranks, int64_t first, int64_t last,
                    uint8_t* weight_class, int64_t* kept) {
  auto* judge_one = judge_block;
#if PE_X86
  if (has_avx512()) judge_one = judge_block_avx512;
#endif
  std::vector<BlockScratch> scratch(1);
  Judged part;
  for (int64_t block = first; block < last; ++block) {
    const int64_t begin = block * kPlanBlock;
    const int32_t size = block_size(begin, contest.num_samples);
    draw_block(begin, contest.seed, contest.epoch, scratch[0].draw);
    const Judgement found =
        judge_one(contest, ranks, begin, size, scratch.data(), weight_class, &part.listed);
    part.pool += found.pool;
    part.above += found.above;
    kept[block] = found.above;
  }
  return part;
}

Judged judge(const Contest& contest, EdgeRanks ranks, uint8_t* weight_class, int64_t* kept) {
  Judged all;
  std::mutex guard;
  const int64_t blocks = num_blocks(contest.num_samples, kPlanBlock);
  TorchThreads{}(0, blocks, kGrain, [&](int64_t first, int64_t last) {
    const Judged part = judge_blocks(contest, ranks, first, last, weight_class, kept);
    const std::lock_guard<std::mutex> lock(guard);
    all.pool += part.pool;
    all.above += part.above;
    all.listed.insert(all.listed.end(), part.listed.begin(), part.listed.end());
  });
  return all;
}

// Moves the winners among equals to the front: the largest tie keys, then the smallest indices.
void settle_ties(const Contest& contest, std::vector<Listed>::iterator begin,
                 std::vector<Listed>::iterator end, int64_t stay) {
  if (stay == 0 || stay == end - begin) return;
  TorchThreads{}(0, end - begin, kManyTies, [&](int64_t first, int64_t last) {
    for (auto tie = begin + first; tie != begin + last; ++tie) {
      tie->rank = tie_key(static_cast<uint64_t>(tie->index), contest.seed, contest.epoch);
    }
  });
  std::nth_element(begin, begin + (stay - 1), end, [](const Listed& a, const Listed& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.index < b.index;
  });
}

// Moves the wanted first ones of the listed to the front.
void settle(const Contest& contest, int64_t wanted, std::vector<Listed>* listed) {
  const auto begin = listed->begin(), end = listed->end();
  if (wanted == 0 || wanted == end - begin) return;
  std::nth_element(begin, begin + (wanted - 1), end,
                   [](const Listed& a, const Listed& b) { return a.rank > b.rank; });
  const uint32_t edge = (begin + (wanted - 1))->rank;
  const auto at_edge = [edge](const Listed& each) { return each.rank == edge; };
  if (std::none_of(begin + wanted, end, at_edge)) return;  // nobody ties with who stays
  const auto higher =
      std::partition(begin, end, [edge](const Listed& each) { return each.rank > edge; });
  const auto equal = std::partition(higher, end, at_edge);
  settle_ties(contest, higher, equal, wanted - (higher - begin));
}

}  // namespace

Tensor plan_top_cpu(Tensor records,  // [N] int64
                    int64_t k, int64_t cut, int64_t seed, int64_t epoch,
                    Tensor weight_class) {  // [N] uint8, changed
  check_plan_top(records, k, cut, seed, epoch, weight_class);
  const int64_t num_samples = records.numel();
  const int64_t blocks = num_blocks(num_samples, kPlanBlock);
  Tensor block_offsets = torch::stable::new_empty(records, {blocks + 1}, ScalarType::Long);
  int64_t* kept = block_offsets.mutable_data_ptr<int64_t>();
  uint8_t* out = weight_class.mutable_data_ptr<uint8_t>();
  prefer_huge_pages(out, static_cast<size_t>(num_samples));

  const Contest contest = {records.const_data_ptr<int64_t>(),
                           num_samples,
                           k,
                           static_cast<uint32_t>(cut),
                           static_cast<uint64_t>(seed),
                           static_cast<uint32_t>(epoch)};
  Judged found = judge(contest, guess_ranks(contest), out, kept);
  const int64_t stay = std::min(k, found.pool);
  if (found.above > stay || found.above + static_cast<int64_t>(found.listed.size()) < stay) {
    found = judge(contest, {1, kUnseenFirst}, out, kept);
  }
  const int64_t wanted = stay - found.above;
  settle(contest, wanted, &found.listed);
  for (int64_t at = 0; at < wanted; ++at) {
    const int32_t index = found.listed[static_cast<size_t>(at)].index;
    out[index] = 1;
    kept[index / kPlanBlock] += 1;
  }
  int64_t offset = 0;
  for (int64_t block = 0; block < blocks; ++block) offset += std::exchange(kept[block], offset);
  kept[blocks] = offset;
  return block_offsets;
}

}  // namespace prune_engine

STABLE_TORCH_LIBRARY_IMPL(prune_engine, CPU, m) {
  m.impl("plan_top", TORCH_BOX(&prune_engine::plan_top_cpu));
}
