// SPDX-License-Identifier: Apache-2.0
// Moments of tensors on a GPU, for the kernels that read them and those that write them.
//
// A unit is 256 neighbouring elements, which a warp reads; a block of threads takes a fixed run of
// units, adds up its part and leaves two doubles; the last block to end adds these up in their
// order. So neither scheduling nor time changes a bit.
//
// Accuracy. A thread holds 16 bytes times four of its tensor in registers and sees them from their
// own mean, in float32 (double for double); what it adds up, in double, is their distance from the
// tensor's first element. No float32 sum is longer than 32, so the relative error of the std is
// below 4e-7. Squares that a float32 cannot hold overflow (then the result is not finite) or
// vanish: distances from the mean beyond 1e18 or below 1e-19 are not measured.
#pragma once

#include <algorithm>

#include "../moments.h"
#include "block.cuh"
#include "launch.h"
#include "real.cuh"

namespace prune_engine {
namespace cuda {

constexpr int kMomentThreads = 256;
constexpr int kMomentWarps = kMomentThreads / kWarp;
constexpr int kVectors = 4;         // 16-byte loads in flight per thread
constexpr int64_t kMinUnits = 32;   // per block of threads: one trip of its warps
constexpr int64_t kMaxGrid = 8192;  // so that the last block has few parts to add

struct Entry {
  const void* x;
  int64_t numel;
  unsigned first_block;
  Real type;
};

// Kernel arguments hold 4096 bytes: the pointers of a table travel in them, by value.
struct Table {
  Entry entry[kMomentTable];
  int count;
  int64_t sample;
  int64_t units_per_block;
  MomentScratch scratch;
  double* rows;  // [count][3], of this table
};
static_assert(sizeof(Table) <= 4000, "a kernel's arguments");

struct ReadOnly {
  static constexpr bool kWrites = false;
  template <typename Wide>
  static __device__ __forceinline__ Wide apply(Wide x) {
    return x;
  }
};

// Distances from the tensor's first element.
struct Sums {
  double sum;
  double square;
};

__device__ __forceinline__ void add_value(double d, Sums* sums) {
  sums->sum += d;
  sums->square += d * d;
}

template <typename Wide, int n>
__device__ __forceinline__ void add_values(const Wide (&value)[n], double origin, Sums* sums) {
  Wide part[4] = {value[0], value[1], value[2], value[3]};
#pragma unroll
  for (int k = 4; k < n; ++k) part[k % 4] += value[k];
  const Wide centre = ((part[0] + part[1]) + (part[2] + part[3])) * (Wide(1) / Wide(n));
  Wide sum[4] = {}, square[4] = {};
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const Wide d = value[k] - centre;
    sum[k % 4] += d;
    square[k % 4] += d * d;
  }
  const double s = static_cast<double>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  const double q = static_cast<double>((square[0] + square[1]) + (square[2] + square[3]));
  const double shift = static_cast<double>(centre) - origin;
  const double moved = static_cast<double>(n) * shift;
  sums->sum += s + moved;
  sums->square += q + shift * (s + s + moved);
}

// The units [first, last) of a tensor, or of a sample of it. A warp takes as many at a time as fill
// its four loads.
template <typename Act, typename T>
__device__ __forceinline__ void add_units(const T* x, T* y, int64_t numel, int64_t first,
                                          int64_t last, int64_t sample, bool vector, double origin,
                                          Sums* sums) {
  constexpr int kPer = 16 / static_cast<int>(sizeof(T));                   // elements of a load
  constexpr int kSteps = static_cast<int>(kSampleBlock) / (kPer * kWarp);  // loads of a unit
  constexpr int kUnits = kVectors / kSteps;
  const int64_t blocks = num_blocks(numel, kSampleBlock);
  const int lane = lane_id();
  for (int64_t unit = first + warp_id() * kUnits; unit < last; unit += kMomentWarps * kUnits) {
    int64_t begin[kUnits];
    bool full = unit + kUnits <= last;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      // A unit past the end is any other one, which nobody reads.
      const int64_t at = unit + u < last ? unit + u : unit;
      begin[u] = kSampleBlock * (sample == 1 ? at : sampled_block(at, sample, blocks));
      full = full && begin[u] + kSampleBlock <= numel;
    }
    if (vector && full) {
      uint4 bits[kVectors];
      decltype(widen(T())) value[kVectors * kPer];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = begin[v / kSteps] + (v % kSteps) * (kPer * kWarp) + lane * kPer;
        bits[v] = *reinterpret_cast<const uint4*>(x + at);
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        T given[kPer];
        memcpy(given, &bits[v], sizeof bits[v]);
#pragma unroll
        for (int k = 0; k < kPer; ++k) {
          if (Act::kWrites) narrow(Act::apply(widen(given[k])), &given[k]);
          value[v * kPer + k] = widen(given[k]);
        }
        if (Act::kWrites) {
          const int64_t at = begin[v / kSteps] + (v % kSteps) * (kPer * kWarp) + lane * kPer;
          memcpy(&bits[v], given, sizeof bits[v]);
          *reinterpret_cast<uint4*>(y + at) = bits[v];
        }
      }
      add_values(value, origin, sums);
    } else {
      for (int u = 0; u < kUnits && unit + u < last; ++u) {
        const int64_t start =
            kSampleBlock * (sample == 1 ? unit + u : sampled_block(unit + u, sample, blocks));
        const int64_t end = start + kSampleBlock < numel ? start + kSampleBlock : numel;
        if constexpr (Act::kWrites) {
          // y may be x, so no read goes ahead of a write: copies of the body would only cost bytes.
#pragma unroll 1
          for (int64_t i = start + lane; i < end; i += kWarp) {
            T given = x[i];
            narrow(Act::apply(widen(given)), &given);
            y[i] = given;
            add_value(static_cast<double>(widen(given)) - origin, sums);
          }
        } else {
          for (int64_t i = start + lane; i < end; i += kWarp) {
            add_value(static_cast<double>(widen(x[i])) - origin, sums);
          }
        }
      }
    }
  }
}

__device__ __forceinline__ Sums add_lanes(Sums sums) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    sums.sum += __shfl_down_sync(kAllLanes, sums.sum, offset);
    sums.square += __shfl_down_sync(kAllLanes, sums.square, offset);
  }
  return sums;
}

// Leaves this block's sums where the last block finds them. True for all threads of that one.
__device__ __forceinline__ bool leave_sums(Sums sums, const MomentScratch& scratch) {
  __shared__ Sums of_warp[kMomentWarps];
  __shared__ bool last;
  sums = add_lanes(sums);
  if (lane_id() == 0) of_warp[warp_id()] = sums;
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int warp = 1; warp < kMomentWarps; ++warp) {
      sums.sum += of_warp[warp].sum;
      sums.square += of_warp[warp].square;
    }
    scratch.parts[2 * blockIdx.x] = sums.sum;
    scratch.parts[2 * blockIdx.x + 1] = sums.square;
    __threadfence();
    last = atomicAdd(scratch.ticket, 1u) == gridDim.x - 1;
    // Between the ticket and the barrier: what the other blocks left is then before this fence, and
    // the fence before every thread's reads beyond the barrier.
    __threadfence();
  }
  __syncthreads();
  return last;
}

// A row from the parts of its blocks [first, last), by one warp.
__device__ __forceinline__ void write_row(const double* parts, unsigned first, unsigned last,
                                          int64_t count, double origin, double* row) {
  Sums sums = {0.0, 0.0};
  for (unsigned block = first + lane_id(); block < last; block += kWarp) {
    sums.sum += __ldcg(parts + 2 * block);
    sums.square += __ldcg(parts + 2 * block + 1);
  }
  sums = add_lanes(sums);
  if (lane_id() != 0) return;
  const double n = static_cast<double>(count);
  const double mean = count == 0 ? 0.0 : sums.sum / n;
  const double squares = sums.square - sums.sum * mean;
  row[0] = n;
  row[1] = count == 0 ? 0.0 : origin + mean;
  row[2] = squares < 0.0 ? 0.0 : squares;  // a nan stays one
}

// How many elements a sample reads: all its blocks are full but perhaps the one at the end.
__device__ __forceinline__ int64_t sampled_count(int64_t numel, int64_t sample) {
  if (sample == 1 || numel == 0) return numel;
  const int64_t blocks = num_blocks(numel, kSampleBlock);
  const int64_t groups = num_blocks(blocks, sample);
  const bool short_one = sampled_block(groups - 1, sample, blocks) == blocks - 1;
  return groups * kSampleBlock - (short_one ? blocks * kSampleBlock - numel : 0);
}

__device__ __forceinline__ double first_element(const Entry& entry) {
  return entry.numel == 0 ? 0.0 : read_real<double>(entry.x, entry.type, 0);
}

template <typename T>
__device__ __forceinline__ void add_entry(const Table& table, const Entry& entry, double origin,
                                          Sums* sums) {
  const int64_t units = num_blocks(num_blocks(entry.numel, kSampleBlock), table.sample);
  const int64_t first = (blockIdx.x - entry.first_block) * table.units_per_block;
  const int64_t last =
      first + table.units_per_block < units ? first + table.units_per_block : units;
  const auto* x = static_cast<const T*>(entry.x);
  const bool vector = reinterpret_cast<uintptr_t>(x) % sizeof(uint4) == 0;
  add_units<ReadOnly, T>(x, nullptr, entry.numel, first, last, table.sample, vector, origin, sums);
}

// The whole of a kernel that reads a table; true for the block that has written the rows.
__device__ __forceinline__ bool read_table(const Table& table) {
  int low = 0, high = table.count - 1;  // the last tensor that begins at this block or before
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.entry[middle].first_block <= blockIdx.x) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const Entry& entry = table.entry[low];
  const double origin = first_element(entry);
  Sums sums = {0.0, 0.0};
  switch (entry.type) {
    case Real::kDouble:
      add_entry<double>(table, entry, origin, &sums);
      break;
    case Real::kHalf:
      add_entry<__half>(table, entry, origin, &sums);
      break;
    case Real::kBFloat16:
      add_entry<__nv_bfloat16>(table, entry, origin, &sums);
      break;
    default:
      add_entry<float>(table, entry, origin, &sums);
      break;
  }
  if (!leave_sums(sums, table.scratch)) return false;
  for (int k = warp_id(); k < table.count; k += kMomentWarps) {
    const Entry& tensor = table.entry[k];
    const unsigned end = k + 1 < table.count ? table.entry[k + 1].first_block : gridDim.x;
    write_row(table.scratch.parts, tensor.first_block, end,
              sampled_count(tensor.numel, table.sample), first_element(tensor), table.rows + 3 * k);
  }
  __syncthreads();
  return true;
}

// Fills a table with the next tensors and returns its grid. Every tensor has at least one block, so
// an empty one has its row as well.
inline unsigned fill_table(const Activation* tensors, int count, int64_t sample, double* rows,
                           const MomentScratch& scratch, Table* table) {
  int64_t units = 0;
  for (int k = 0; k < count; ++k) {
    units += num_blocks(num_blocks(tensors[k].numel, kSampleBlock), sample);
  }
  table->count = count;
  table->sample = sample;
  table->units_per_block =
      kMinUnits * std::max(num_blocks(units, kMinUnits * kMaxGrid), int64_t{1});
  table->scratch = scratch;
  table->rows = rows;
  unsigned blocks = 0;
  for (int k = 0; k < count; ++k) {
    table->entry[k] = {tensors[k].x, tensors[k].numel, blocks, tensors[k].type};
    const int64_t own = num_blocks(num_blocks(tensors[k].numel, kSampleBlock), sample);
    blocks += static_cast<unsigned>(std::max(num_blocks(own, table->units_per_block), int64_t{1}));
  }
  return blocks;
}

// Declared here for launch_activation_std: rows, and where target.layers is not 0 their std.
cudaError_t launch_tables(const Activation* tensors, int count, int64_t sample,
                          const StdTarget& target, const MomentScratch& scratch,
                          cudaStream_t stream);

}  // namespace cuda
}  // namespace prune_engine
