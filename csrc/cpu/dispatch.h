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
