// Whether this machine runs what the row kernels were compiled for; CMakeLists.txt has the flags.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace gkd {
namespace cpu {

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

}  // namespace cpu
}  // namespace gkd
#endif
