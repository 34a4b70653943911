// Which instruction set's kernels run on this machine. No torch: programs that test the kernels
// link this file too.
#include "cpu/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gkd::cpu {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  // Compilers differ in whether __builtin_cpu_supports knows f16c.
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

}  // namespace

std::vector<Kernels> supported_kernels() {
  std::vector<Kernels> supported = {DEFAULT::kernels()};
#if defined(__x86_64__)
  if (has_avx2()) supported.push_back(AVX2::kernels());
  if (has_avx512()) supported.push_back(AVX512::kernels());
#endif
  return supported;
}

const Kernels& kernels() {
  static const Kernels fastest = supported_kernels().back();
  return fastest;
}

}  // namespace gkd::cpu
