// SPDX-License-Identifier: Apache-2.0
// Moments of tensors on the CPU, for the operators that read them and those that write them.
//
// A tensor is cut into spans of 32 blocks of 4096 elements. A block is added up in 16 lanes, blocks
// are merged in their order inside a span and spans in theirs, all in double; contraction is off.
// So neither the number of threads nor the instruction set changes a bit.
//
// Accuracy. A block is seen from the mean of the block before, a float32; sums of four are taken in
// float32, each operation within 2^-24, and added up in double. The squared jumps between the means
// of neighbours are at most four times the sum of squares, which bounds the relative error of the
// std by 7e-7; measured it is far smaller, for roundings have no direction. The first block of a
// span, float64 and what float32 squares cannot hold are seen from their own first element, in
// double: what cancels is at most the block's length, 2^12 of 2^53.
#pragma once

#include <algorithm>
#include <vector>

#include "../moments.h"
#include "activation.h"
#include "dtypes.h"
#include "parallel.h"

namespace prune_engine {

constexpr int64_t kMomentBlock = 4096;
constexpr int64_t kSpanBlocks = 32;
constexpr int64_t kSpan = kMomentBlock * kSpanBlocks;
constexpr int kLanes = 16;

// Asks for lines well before they are read: without, this much arithmetic leaves a third of the
// bandwidth unused. The distances were found by trying.
template <int elements, typename T>
PE_INLINE void prefetch(const T* x) {
  constexpr size_t kAhead = sizeof(T) == 2 ? 3072 : 1536;
#pragma GCC unroll 4
  for (size_t line = 0; line < elements * sizeof(T); line += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(x) + kAhead + line);
  }
}

struct LaneSums {
  double sum[kLanes];
  double square[kLanes];
};

// The count, mean and squares of n elements from sums of their distances from centre.
PE_INLINE Moments finish(LaneSums* sums, double centre, int64_t n) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      sums->sum[lane] += sums->sum[lane + half];
      sums->square[lane] += sums->square[lane + half];
    }
  }
  const double count = static_cast<double>(n);
  const double mean = sums->sum[0] / count;
  const double squares = sums->square[0] - sums->sum[0] * mean;
  return {count, centre + mean, squares < 0.0 ? 0.0 : squares};  // a nan stays one
}

// What is left of a block once its full vectors are done: less than a vector's worth at a time, by
// way of a buffer, as the activation knows only vectors.
template <typename Act, int W, typename T>
PE_INLINE void add_rest(const T* x, T* y, int64_t begin, int64_t n, double centre, LaneSums* sums) {
  for (int64_t i = begin; i < n; i += W) {
    const int64_t rest = std::min<int64_t>(W, n - i);
    T in[W] = {}, out[W] = {};
    for (int64_t k = 0; k < rest; ++k) in[k] = x[i + k];
    Act::template apply<W>(in, out);
    for (int64_t k = 0; k < rest; ++k) {
      const T left = Act::kWrites ? out[k] : in[k];
      if (Act::kWrites) y[i + k] = left;
      const double d = static_cast<double>(left) - centre;
      const auto lane = static_cast<size_t>((i + k) % kLanes);
      sums->sum[lane] += d;
      sums->square[lane] += d * d;
    }
  }
}

template <typename Act, int W, typename T>
PE_INLINE double first_of(const T* x) {
  T in[W] = {}, out[W] = {};
  in[0] = x[0];
  Act::template apply<W>(in, out);
  return static_cast<double>(Act::kWrites ? out[0] : in[0]);
}

// Calls body(0), body(1), ...: side by side where that hides what an element waits for. Where it
// costs much, its own instructions are enough for that, and not written four times.
template <typename Act, int kParts, typename Body>
PE_INLINE void for_each_part(const Body& body) {
  if constexpr (Act::kCheap) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) body(part);
  } else {
#pragma GCC unroll 1
    for (int part = 0; part < kParts; ++part) body(part);
  }
}

// One block, every step in double.
template <typename Act, int W, typename T>
PE_INLINE Moments block_in_double(const T* x, T* y, int64_t n) {
  using Double = typename Vec<W>::Double;
  constexpr int kParts = kLanes / W;
  const double centre = first_of<Act, W>(x);
  Double sum[kParts] = {}, square[kParts] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    prefetch<kLanes>(x + i);
    for_each_part<Act, kParts>([&](int part) __attribute__((always_inline)) {
      const int64_t at = i + part * W;
      const Double d =
          __builtin_convertvector(Act::template apply<W>(x + at, y + at), Double) - centre;
      sum[part] += d;
      square[part] += d * d;
    });
  }
  LaneSums sums;
  std::memcpy(sums.sum, sum, sizeof sum);
  std::memcpy(sums.square, square, sizeof square);
  add_rest<Act, W>(x, y, i, n, centre, &sums);
  return finish(&sums, centre, n);
}

// One block around a centre nearby: four elements of a lane are added in float32.
template <typename Act, int W, typename T>
PE_INLINE Moments block_in_fours(const T* x, T* y, int64_t n, float centre) {
  using Double = typename Vec<W>::Double;
  using Float = typename Vec<W>::Float;
  constexpr int kParts = kLanes / W;
  Double sum[kParts] = {}, square[kParts] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    prefetch<4 * kLanes>(x + i);
    for_each_part<Act, kParts>([&](int part) __attribute__((always_inline)) {
      const T* from = x + i + part * W;
      T* to = y + i + part * W;
      Float v[4];
      for_each_part<Act, 4>([&](int k) __attribute__((always_inline)) {
        v[k] = Act::template apply<W>(from + k * kLanes, to + k * kLanes) - centre;
      });
      const Float a = v[0], b = v[1], c = v[2], d = v[3];
      sum[part] += __builtin_convertvector((a + b) + (c + d), Double);
      square[part] += __builtin_convertvector((a * a + b * b) + (c * c + d * d), Double);
    });
  }
  LaneSums sums;
  std::memcpy(sums.sum, sum, sizeof sum);
  std::memcpy(sums.square, square, sizeof square);
  add_rest<Act, W>(x, y, i, n, centre, &sums);
  return finish(&sums, centre, n);
}

template <typename T>
constexpr bool kInFours = sizeof(T) < sizeof(double);

// Where float32 squares neither overflow nor lose what they sum up to.
PE_INLINE bool in_range(const Moments& m) {
  return m.squares > 1e-24 * m.count && m.squares < 1e34;
}

// Some elements of one tensor: whole blocks of it, or the blocks of a sample.
template <typename T>
struct Span {
  const T* x;
  T* y;  // x again where nothing is written
  int64_t numel;
  int64_t sample;
  int64_t first;  // of its blocks, or of its groups of blocks
  int64_t last;
};

template <typename Act, int W, typename T>
PE_INLINE Moments span_moments(const Span<T>& span) {
  const int64_t size = span.sample == 1 ? kMomentBlock : kSampleBlock;
  const int64_t blocks = num_blocks(span.numel, size);
  Moments all = {0.0, 0.0, 0.0};
  float centre = 0.0f;
  for (int64_t k = span.first; k < span.last; ++k) {
    const int64_t begin = size * (span.sample == 1 ? k : sampled_block(k, span.sample, blocks));
    const int64_t n = std::min(size, span.numel - begin);
    Moments block;
    if constexpr (kInFours<T>) {
      // The first block has none before it.
      if (k > span.first) {
        block = block_in_fours<Act, W>(span.x + begin, span.y + begin, n, centre);
        if (!in_range(block))
          block = block_in_double<ReadLanes, W>(span.y + begin, span.y + begin, n);
      } else {
        block = block_in_double<Act, W>(span.x + begin, span.y + begin, n);
      }
      centre = static_cast<float>(block.mean);
    } else {
      block = block_in_double<Act, W>(span.x + begin, span.y + begin, n);
    }
    all = merge_moments(all, block);
  }
  return all;
}

// One copy per instruction set, chosen at run time: the attribute that makes the copies by itself
// would give all of them one width, and the best differs.
#if defined(__x86_64__) && defined(__GNUC__)
#define PE_BASELINE __attribute__((cold))  // processors older than 2013: small, not fast
template <typename Act, typename T>
__attribute__((target("avx512f,avx512bw"))) Moments span_avx512(const Span<T>& span) {
  return span_moments<Act, kInFours<T> ? 16 : 8>(span);
}
template <typename Act, typename T>
__attribute__((target("avx2"))) Moments span_avx2(const Span<T>& span) {
  return span_moments<Act, 4>(span);
}
#else
#define PE_BASELINE
#endif
template <typename Act, typename T>
PE_BASELINE Moments span_baseline(const Span<T>& span) {
  return span_moments<Act, 4>(span);
}

template <typename Act, typename T>
Moments (*choose_span())(const Span<T>&) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512bw")) return span_avx512<Act, T>;
  if (__builtin_cpu_supports("avx2")) return span_avx2<Act, T>;
#endif
  return span_baseline<Act, T>;
}

// A tensor as the kernels see it: numel elements from x on, in the order of the storage.
struct Elements {
  const void* x;
  void* y;
  int64_t numel;
  ScalarType dtype;

  int64_t blocks(int64_t sample) const {
    if (sample == 1) return num_blocks(numel, kMomentBlock);
    return num_blocks(num_blocks(numel, kSampleBlock), sample);
  }
  // Of a sample, as many elements as otherwise.
  static int64_t span_blocks(int64_t sample) {
    return sample == 1 ? kSpanBlocks : kSpan / kSampleBlock;
  }
};

template <typename Act>
Moments one_span(const Elements& tensor, int64_t sample, int64_t span) {
  Moments found = {0.0, 0.0, 0.0};
  with_float_type(tensor.dtype, "tensors", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    static const auto moments_of = choose_span<Act, T>();
    const int64_t size = Elements::span_blocks(sample);
    const auto* x = static_cast<const T*>(tensor.x);
    T* y = Act::kWrites ? static_cast<T*>(tensor.y) : const_cast<T*>(x);
    found = moments_of({x, y, tensor.numel, sample, span * size,
                        std::min((span + 1) * size, tensor.blocks(sample))});
  });
  return found;
}

// The moments of each tensor; all spans of all tensors are shared out among torch's threads.
template <typename Act>
std::vector<Moments> all_moments(const std::vector<Elements>& tensors, int64_t sample) {
  std::vector<int64_t> start = {0};  // the first span of each tensor
  int64_t elements = 0;
  for (const Elements& tensor : tensors) {
    start.push_back(start.back() +
                    num_blocks(tensor.blocks(sample), Elements::span_blocks(sample)));
    elements += tensor.numel / sample;
  }
  const int64_t spans = start.back();
  std::vector<Moments> part(static_cast<size_t>(spans));
  constexpr int64_t kWorthAThread = 32768;
  const int64_t grain = num_blocks(spans * kWorthAThread, std::max(elements, int64_t{1}));
  TorchThreads()(0, spans, grain, [&](int64_t begin, int64_t end) {
    auto owner = std::upper_bound(start.begin(), start.end(), begin) - start.begin() - 1;
    for (int64_t span = begin; span < end; ++span) {
      while (start[static_cast<size_t>(owner) + 1] <= span) ++owner;
      const auto k = static_cast<size_t>(owner);
      part[static_cast<size_t>(span)] = one_span<Act>(tensors[k], sample, span - start[k]);
    }
  });
  std::vector<Moments> result(tensors.size(), {0.0, 0.0, 0.0});
  for (size_t k = 0; k < tensors.size(); ++k) {
    for (int64_t span = start[k]; span < start[k + 1]; ++span) {
      result[k] = merge_moments(result[k], part[static_cast<size_t>(span)]);
    }
  }
  return result;
}

inline std::vector<Elements> elements_of(const std::vector<Tensor>& tensors) {
  std::vector<Elements> found;
  for (const Tensor& tensor : tensors) {
    found.push_back({tensor.const_data_ptr(), nullptr, tensor.numel(), tensor.scalar_type()});
  }
  return found;
}

// Writes act(x) to y, which has the layout of x or is x, and returns its moments, float64 [3].
template <typename Act>
Tensor write_moments(const Tensor& x, Tensor& y) {
  void* written = y.mutable_data_ptr();
  const Moments found =
      all_moments<Act>({{x.const_data_ptr(), written, x.numel(), x.scalar_type()}}, 1)[0];
  Tensor result = torch::stable::new_empty(x, {3}, ScalarType::Double);
  std::memcpy(result.mutable_data_ptr(), &found, sizeof found);
  return result;
}

}  // namespace prune_engine
