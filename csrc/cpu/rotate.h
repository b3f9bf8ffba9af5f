// SPDX-License-Identifier: Apache-2.0
// The whole order at once: kept[pi(0)], kept[pi(1)], ... without a random access.
//
// On the grid of bijection.h an additive round moves all of a column by the same number of rows, or
// all of a row by the same number of columns. So applying pi to every position is rotating columns
// and rows in turn: a column is contiguous, its rotation is only remembered as an offset; rows are
// rotated a panel of kPanel rows at a time, which is read, transposed into the cache, rotated there
// and written back where it came from. That is one pass over the list for every two rounds, at the
// speed of memory, and no copy of the list beside the result.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../bijection.h"

namespace prune_engine {

constexpr uint32_t kPanel = 32;      // rows: 128 bytes of a column, a panel of 10M samples in L2
constexpr uint32_t kTile = 4;        // columns transposed together
constexpr uint32_t kLookAhead = 24;  // columns whose cache lines are asked for beforehand

// Sixteen bytes: every 64-bit processor has such vectors, so nothing is chosen at run time.
using Lanes = int32_t __attribute__((vector_size(16)));
using UnalignedLanes = int32_t __attribute__((vector_size(16), aligned(4), may_alias));

#if defined(__clang__)
#define PE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Lanes{__VA_ARGS__})
#endif

// tile[i][j] <-> tile[j][i].
inline __attribute__((always_inline)) void transpose(Lanes* tile) {
  const Lanes low01 = PE_SHUFFLE(tile[0], tile[1], 0, 4, 1, 5);
  const Lanes high01 = PE_SHUFFLE(tile[0], tile[1], 2, 6, 3, 7);
  const Lanes low23 = PE_SHUFFLE(tile[2], tile[3], 0, 4, 1, 5);
  const Lanes high23 = PE_SHUFFLE(tile[2], tile[3], 2, 6, 3, 7);
  tile[0] = PE_SHUFFLE(low01, low23, 0, 1, 4, 5);
  tile[1] = PE_SHUFFLE(low01, low23, 2, 3, 6, 7);
  tile[2] = PE_SHUFFLE(high01, high23, 0, 1, 4, 5);
  tile[3] = PE_SHUFFLE(high01, high23, 2, 3, 6, 7);
}

// A list as columns of the grid. The last column has storage of its own, for the list ends in it.
// Row r of column c is stored at (r + offset[c]) mod the number of rows.
struct Columns {
  int32_t* list;
  int32_t* last;
  const uint32_t* offset;
};

struct Shape {
  uint32_t columns;
  uint32_t bits;  // 2^bits rows
  uint32_t mask;
};

inline __attribute__((always_inline)) int32_t* column_at(const Shape& grid, const Columns& of,
                                                         uint32_t column) {
  return column + 1 < grid.columns ? of.list + (static_cast<uint64_t>(column) << grid.bits)
                                   : of.last;
}

inline size_t panel_stride(uint32_t columns) { return size_t{columns} + 2 * kTile; }

// Rows first_row..first_row + kPanel - 1 of all columns -> scratch, one row after the other, each
// with its first columns once more behind its end, so that a rotated read need not wrap.
inline void read_panel(const Shape& grid, const Columns& from, uint32_t first_row,
                       int32_t* scratch) {
  const size_t stride = panel_stride(grid.columns);
  const uint32_t rows = grid.mask + 1, last = grid.columns - 1;
  int32_t joined[kTile][kPanel];
  for (uint32_t column = 0; column < grid.columns; column += kTile) {
    const int32_t* source[kTile];
    for (uint32_t i = 0; i < kTile; ++i) {
      const uint32_t c = std::min(column + i, last);
      const int32_t* start = column_at(grid, from, c);
      const uint32_t row = (first_row + from.offset[c]) & grid.mask;
      source[i] = start + row;
      if (row + kPanel > rows) {
        const uint32_t head = rows - row;
        std::memcpy(joined[i], start + row, head * sizeof(int32_t));
        std::memcpy(joined[i] + head, start, (kPanel - head) * sizeof(int32_t));
        source[i] = joined[i];
      }
      const uint32_t next = std::min(column + i + kLookAhead, last);
      const int32_t* ahead =
          column_at(grid, from, next) + ((first_row + from.offset[next]) & grid.mask);
      for (uint32_t line = 0; line < kPanel; line += 16) __builtin_prefetch(ahead + line);
    }
    for (uint32_t lane = 0; lane < kPanel; lane += kTile) {
      Lanes tile[kTile];
      for (uint32_t i = 0; i < kTile; ++i) {
        tile[i] = *reinterpret_cast<const UnalignedLanes*>(source[i] + lane);
      }
      transpose(tile);
      for (uint32_t i = 0; i < kTile; ++i) {
        *reinterpret_cast<UnalignedLanes*>(scratch + (lane + i) * stride + column) = tile[i];
      }
    }
  }
  for (uint32_t lane = 0; lane < kPanel; ++lane) {
    int32_t* row = scratch + lane * stride;
    for (uint32_t i = 0; i < kTile; ++i) row[grid.columns + i] = row[i];
  }
}

// The panel back, row r from column (c + shift[r]) mod the number of columns.
inline void write_panel(const Shape& grid, const Columns& into, uint32_t first_row,
                        const uint32_t* shift, const int32_t* scratch) {
  const size_t stride = panel_stride(grid.columns);
  const uint32_t rows = grid.mask + 1;
  int32_t joined[kTile][kPanel];
  uint32_t from[kPanel];
  for (uint32_t lane = 0; lane < kPanel; ++lane) from[lane] = shift[first_row + lane];
  for (uint32_t column = 0; column < grid.columns; column += kTile) {
    const uint32_t size = std::min(kTile, grid.columns - column);
    int32_t* target[kTile];
    for (uint32_t i = 0; i < kTile; ++i) {
      target[i] = joined[i];
      if (i >= size) continue;
      const uint32_t row = (first_row + into.offset[column + i]) & grid.mask;
      if (row + kPanel <= rows) target[i] = column_at(grid, into, column + i) + row;
    }
    for (uint32_t lane = 0; lane < kPanel; lane += kTile) {
      Lanes tile[kTile];
      for (uint32_t i = 0; i < kTile; ++i) {
        tile[i] = *reinterpret_cast<const UnalignedLanes*>(scratch + (lane + i) * stride +
                                                           from[lane + i]);
      }
      transpose(tile);
      for (uint32_t i = 0; i < kTile; ++i) {
        *reinterpret_cast<UnalignedLanes*>(target[i] + lane) = tile[i];
      }
    }
    for (uint32_t lane = 0; lane < kPanel; ++lane) {
      const uint32_t next = from[lane] + kTile;
      from[lane] = next >= grid.columns ? next - grid.columns : next;
    }
    for (uint32_t i = 0; i < size; ++i) {
      if (target[i] != joined[i]) continue;
      int32_t* start = column_at(grid, into, column + i);
      const uint32_t row = (first_row + into.offset[column + i]) & grid.mask;
      const uint32_t head = rows - row;
      std::memcpy(start + row, joined[i], head * sizeof(int32_t));
      std::memcpy(start, joined[i] + head, (kPanel - head) * sizeof(int32_t));
    }
  }
}

// Whether the grid has whole panels and a column more than a tile reads beyond its end.
inline bool rotates(const Bijection& pi) {
  return pi.rounds == kRoundsLarge && pi.mask + 1 >= kPanel && pi.columns > kTile;
}

// Writes samples [n]: samples[j] = kept[pi(j)] for every j in [0, n). Needs rotates(pi).
template <typename Parallel>
void order_all(const Bijection& pi, const int32_t* kept, const Parallel& parallel,
               int32_t* samples) {
  const Shape grid = {static_cast<uint32_t>(pi.columns), pi.bits, pi.mask};
  const uint64_t before = static_cast<uint64_t>(grid.columns - 1) << grid.bits;
  const uint64_t tail = pi.n - before;
  std::vector<int32_t> kept_last(grid.mask + 1, 0), samples_last(grid.mask + 1, 0);
  std::copy(kept + before, kept + pi.n, kept_last.begin());
  // The rounds are undone from the last to the first, and when all are, no column may be offset.
  std::vector<uint32_t> offset(grid.columns, 0), shift(grid.mask + 1);
  const std::vector<uint32_t> aligned(grid.columns, 0);
  for (uint32_t column = 0; column < grid.columns; ++column) {
    for (int round = 0; round < kRoundsLarge; round += 2) {
      offset[column] -= row_shift(pi, round, column);
    }
  }
  // Only read: the first pass takes from the list what the others take from the result.
  Columns from = {const_cast<int32_t*>(kept), kept_last.data(), aligned.data()};
  const Columns into = {samples, samples_last.data(), offset.data()};
  for (int round = kRoundsLarge - 2; round >= 0; round -= 2) {
    for (uint32_t row = 0; row <= grid.mask; ++row) shift[row] = column_shift(pi, round + 1, row);
    parallel(0, (grid.mask + 1) / kPanel, 1, [&](int64_t first, int64_t last) {
      std::vector<int32_t> scratch(kPanel * panel_stride(grid.columns));
      for (int64_t panel = first; panel < last; ++panel) {
        const auto row = static_cast<uint32_t>(panel) * kPanel;
        read_panel(grid, from, row, scratch.data());
        write_panel(grid, into, row, shift.data(), scratch.data());
      }
    });
    for (uint32_t column = 0; column < grid.columns; ++column) {
      offset[column] += row_shift(pi, round, column);
    }
    from = into;
  }
  std::copy_n(samples_last.begin(), tail, samples + before);
  // Where the network leaves [0, n) the walk goes on: fewer than 2^bits positions.
  for (uint64_t outside = pi.n; outside < before + grid.mask + 1; ++outside) {
    const uint64_t position = invert_feistel(pi, outside);
    if (position < pi.n) samples[position] = kept[apply_bijection(pi, position)];
  }
}

}  // namespace prune_engine
