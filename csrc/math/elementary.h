// exp, expm1 and phi for the passes over classes.
//
// On a device and for double they are the library's. For float on the host they are branch-free, so
// that the compiler vectorises a loop over a row: within 1.5 ulp where the result is normal, 0
// below exp(-87.3).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "math/simd.h"

namespace gkd {

#if !defined(__CUDACC__)
/// exp without a branch or a table. x = n ln2 + r, |r| <= ln2/2; ln2 is a sum of two constants, so
/// that n times the first is exact. V is float or VecF32, U the unsigned integer of its shape.
template <class V, class U>
GKD_HD V exp_polynomial(V x) {
  const V shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const V n = shifted - 12582912.0f;
  V r = x - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  V p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // n is in the low bits of `shifted`; shifted up, it adds to p's exponent. Between the two bounds
  // below p 2^n is a normal number, so the sum does not overflow the exponent's field; beyond them
  // the result is replaced.
  U exponent, bits;
  std::memcpy(&exponent, &shifted, sizeof(V));
  std::memcpy(&bits, &p, sizeof(V));
  bits = bits + (exponent << 23);
  V value;
  std::memcpy(&value, &bits, sizeof(V));
  value = x < -87.3f ? V{} : value;
  return x <= 88.72283f ? value : x + HUGE_VALF;  // +inf on overflow; NaN propagates
}
GKD_HD VecF32 exp_of(VecF32 x) { return exp_polynomial<VecF32, VecU32>(x); }
#endif

GKD_HD double exp_of(double x) { return ::exp(x); }

GKD_HD float exp_of(float x) {
#if defined(__CUDACC__)
  return ::expf(x);
#else
  return exp_polynomial<float, std::uint32_t>(x);
#endif
}

constexpr float kLog2e = 1.44269504f;

#if defined(__CUDACC__)
/// 2^x by the special function unit, to 2 ulp; results that are not normal numbers are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

GKD_HD constexpr double inverse_factorial(int n) {
  return n <= 1 ? 1.0 : inverse_factorial(n - 1) / n;
}

/// 1/k! - d (1/(k+1)! - d (...)), to 1/last!.
template <int k, int last, class V>
GKD_HD V alternating_series(V d) {
  using R = ScalarOf<V>;
  constexpr R term = static_cast<R>(inverse_factorial(k));
  if constexpr (k == last) {
    return V{} + term;
  } else {
    return term - d * alternating_series<k + 1, last>(d);
  }
}

/// phi(d) = exp(-d) - 1 + d and expm1(-d), both without cancellation at small d.
template <class V>
struct Expm1Phi {
  V expm1, phi;
};

/// For |d| <= 1 only. One series gives both: phi(d) = d^2 (1/2! - d/3! + ...) and
/// expm1(-d) = phi(d) - d. The last term is less than half an ulp of the sum.
template <class V>
GKD_HD Expm1Phi<V> expm1_and_phi(V d) {
  constexpr int kLast = sizeof(ScalarOf<V>) == sizeof(double) ? 19 : 11;
  const V phi = d * d * alternating_series<2, kLast>(d);
  return {phi - d, phi};
}

}  // namespace gkd
