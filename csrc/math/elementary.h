// exp and expm1 for the sweeps over classes.
//
// On a device and for double they are the library's. On a host float they are branch-free, so that
// the compiler turns a loop over a row into vector code: within 1.5 ulp where the result is normal,
// 0 below exp(-87.3).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "math/hostdevice.h"

namespace gkd {

GKD_HD double exp_of(double x) { return ::exp(x); }
GKD_HD double expm1_of(double x) { return ::expm1(x); }

GKD_HD float exp_of(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  // x = n ln2 + r, |r| <= ln2/2; ln2 in two parts, so that n ln2 is exact to float's last place.
  const float bounded = x < -87.3f ? -87.3f : (x > 88.7f ? 88.7f : x);
  const float shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const float n = shifted - 12582912.0f;
  float r = bounded - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n in two halves: n reaches 128, one past the largest exponent.
  const std::int32_t whole = static_cast<std::int32_t>(n);
  const std::int32_t half = whole >> 1;
  const std::int32_t low_bits = (half + 127) << 23, high_bits = (whole - half + 127) << 23;
  float low, high;
  std::memcpy(&low, &low_bits, 4);
  std::memcpy(&high, &high_bits, 4);
  const float value = p * low * high;
  const float capped = x > 88.72284f ? HUGE_VALF : (x < -87.3f ? 0.0f : value);
  return x != x ? x : capped;
#endif
}

/// For |x| <= 1 only.
GKD_HD float expm1_small(float x) {
#if defined(__CUDA_ARCH__)
  return ::expm1f(x);
#else
  float p = 1.0f / 39916800.0f;
  p = p * x + 1.0f / 3628800.0f;
  p = p * x + 1.0f / 362880.0f;
  p = p * x + 1.0f / 40320.0f;
  p = p * x + 1.0f / 5040.0f;
  p = p * x + 1.0f / 720.0f;
  p = p * x + 1.0f / 120.0f;
  p = p * x + 1.0f / 24.0f;
  p = p * x + 1.0f / 6.0f;
  p = p * x + 0.5f;
  p = p * x + 1.0f;
  return p * x;
#endif
}
GKD_HD double expm1_small(double x) { return ::expm1(x); }

}  // namespace gkd
