// SPDX-License-Identifier: Apache-2.0
// Run-time choice of the vector width: the compiler makes one copy of a loop per instruction set
// and the loader picks the best that the processor has, so one binary runs on any x86-64. Other
// processors (aarch64) have their vectors in the baseline. Integers only: every copy gives the
// same bits.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__CUDACC__)
#define PE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define PE_CLONES
#endif

// The same choice for what compilers do not vectorise, and is written by hand. 0: leave all of that
// out, which a test asks for.
#ifndef PE_X86
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__CUDACC__)
#define PE_X86 1
#else
#define PE_X86 0
#endif
#endif

#if PE_X86
namespace prune_engine {
inline bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2");
  return has;
}
inline bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl");
  return has;
}
}  // namespace prune_engine
#endif
