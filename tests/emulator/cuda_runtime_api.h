// SPDX-License-Identifier: Apache-2.0
// CUDA on one CPU thread, for the kernels of csrc/cuda: stands in for the toolkit's header of this
// name. A block's threads are fibers that run until a barrier or a warp exchange; blocks run one
// after the other, so a __shared__ variable is a static one. Fibers run in ascending or descending
// order, so that a missing barrier shows in one of the two; a barrier that not all threads reach
// ends the process.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}

// Of the one thread there is: a real one is forbidden much while a stream is captured in its mode.
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed = 2 };
extern cudaStreamCaptureMode capture_mode;
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

struct Dim {
  unsigned x;
};
extern Dim threadIdx, blockIdx, blockDim, gridDim;

struct uchar2 {
  unsigned char x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) longlong2 {
  long long x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

// Runs grid * block threads; body is the kernel with its arguments.
void launch(unsigned grid, unsigned block, const std::function<void()>& body);
void block_barrier();
uint64_t exchange(uint64_t mine, int source);  // among the 32 threads of a warp

template <typename Value>
Value shuffle(Value value, int source) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(bits, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// An access that a GPU would fault on.
template <typename Value>
const Value* aligned_pointer(const Value* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % sizeof(Value) != 0) {
    std::fprintf(stderr, "a misaligned %zu-byte access\n", sizeof(Value));
    std::abort();
  }
  return pointer;
}

}  // namespace emulator

inline void __syncthreads() { emulator::block_barrier(); }
template <typename Value>
Value __shfl_sync(unsigned, Value value, int lane) {
  return emulator::shuffle(value, lane);
}
template <typename Value>
Value __shfl_down_sync(unsigned, Value value, unsigned offset) {
  const int lane = static_cast<int>(threadIdx.x % 32 + offset);
  return emulator::shuffle(value, lane < 32 ? lane : static_cast<int>(threadIdx.x % 32));
}
template <typename Value>
Value __shfl_up_sync(unsigned, Value value, unsigned offset) {
  const int lane = static_cast<int>(threadIdx.x % 32) - static_cast<int>(offset);
  return emulator::shuffle(value, lane >= 0 ? lane : static_cast<int>(threadIdx.x % 32));
}
template <typename Value>
Value __ldcs(const Value* pointer) {
  return *emulator::aligned_pointer(pointer);
}
template <typename Value>
Value __ldcg(const Value* pointer) {
  return *emulator::aligned_pointer(pointer);
}
template <typename Value>
Value __ldg(const Value* pointer) {
  return *emulator::aligned_pointer(pointer);
}
template <typename Value>
void __stwb(Value* pointer, Value value) {
  emulator::aligned_pointer(pointer);
  *pointer = value;
}
inline void __threadfence() {}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <typename Value>
Value atomicAdd(Value* target, Value value) {
  const Value old = *target;
  *target = old + value;
  return old;
}
inline long long atomicMax(long long* target, long long value) {
  const long long old = *target;
  *target = value > old ? value : old;
  return old;
}
inline long long atomicMin(long long* target, long long value) {
  const long long old = *target;
  *target = value < old ? value : old;
  return old;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
