// The row kernels of every instruction set they are compiled for (CMakeLists.txt has the flags),
// and which of them this machine runs.
#pragma once

#include <vector>

#include "cpu/row.h"
#include "cpu/shard.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gkd {
namespace cpu {

struct Capability {
  const char* name;
  Kernels kernels;
  ShardKernels narrow, wide;
};

#if defined(__x86_64__)
inline bool has_avx2() {
  // Compilers differ in whether __builtin_cpu_supports knows f16c.
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

/// Those that this machine runs, the fastest last.
inline std::vector<Capability> capabilities() {
#define GKD_CAPABILITY(name) \
  Capability{#name, name::kernels(), name::shard_kernels(false), name::shard_kernels(true)}
  std::vector<Capability> found = {GKD_CAPABILITY(DEFAULT)};
#if defined(__x86_64__)
  if (has_avx2()) found.push_back(GKD_CAPABILITY(AVX2));
  if (has_avx512()) found.push_back(GKD_CAPABILITY(AVX512));
#endif
#undef GKD_CAPABILITY
  return found;
}

}  // namespace cpu
}  // namespace gkd
