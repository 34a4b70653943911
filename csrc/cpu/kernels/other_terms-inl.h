// The exponentials of cross-entropy, of all classes but the target (math/cross_entropy.h).
#pragma once

#include <cmath>

#include "cpu/kernels/load_store-inl.h"
#include "math/cross_entropy.h"
#include "math/loss.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// exp(x) for x <= 0, within 2 ulp where x is near 0; below, x has errors of its own. As
/// exp_polynomial(), with the best polynomial of degree 5, whose relative error is 9e-8, ln2 as one
/// constant, and no test for what cannot come.
inline VecF32 exp_of_negative(VecF32 x) {
  const VecF32 shifted = x * 1.44269504f + 12582912.0f;
  const VecF32 r = x - (shifted - 12582912.0f) * 0.693147182f;
  VecF32 p = r * 0.00829027f + 0.04189816f;
  p = p * r + 0.16667638f;
  p = p * r + 0.49999148f;
  p = p * r + 0.99999971f;
  p = p * r + 1.0f;
  const VecF32 value = from_bits(bits_of(p) + (bits_of(shifted) << 23));
  return x < -87.3f ? VecF32{} : value;
}
inline double exp_of_negative(double x) { return exp_of(x); }

/// The exponentials of cross-entropy, exp(scale (x - high)), none larger than 1.
template <class T>
struct OtherTerms {
  T high = 0, scale = 1;

  template <class V>
  V of(V x) const {
    return exp_of_negative(V((x - high) * scale));
  }
};

/// How the last pass computes cross-entropy's exponentials: not at all; each; or, where T is 1, 2,
/// 4 or 8, as powers of exp((S_j - r)/T), which it has already.
enum class Others { kNone, kExp, kPower };

/// exp(scale (x - high)) from terms of the row, by T's power of exp(scale (x - high)/T).
template <class T>
struct OtherPowers {
  int squarings = -1;        ///< log2(T); negative: T is no such number, or a factor has no digits
  T of_q[2]{};               ///< by group: a_j exp(-d_j) times it is exp(scale (x_j - high)/T)
  T of_rest{};               ///< exp(scale (x - high)/T) times it is b_j, in the rest
  bool serves_near = false;  ///< the errors of a_j and d_j, times T, are still small

  OtherPowers() = default;
  OtherPowers(const GroupMoments<double>* moments, const Weights& w, double high) {
    for (int k = 0; k <= 3; ++k) squarings = w.temperature == 1 << k ? k : squarings;
    if (!(high > -kInfinity<double>)) squarings = -1;
    const double inv_t = 1 / w.exponent_temperature();
    for (int g = 0; g < 2; ++g) {
      if (moments[g].count == 0) continue;
      const double gap = (finite_or_zero(moments[g].shift.student) - high) * inv_t;
      const bool has_ratio = moments[g].sum_teacher > 0 && moments[g].sum_student > 0;
      const double log_ratio = has_ratio ? moments[g].log_ratio() : 0;
      if (!(std::abs(gap) <= 40 && std::abs(log_ratio) <= 16)) squarings = -1;
      of_q[g] = static_cast<T>(std::exp(gap + log_ratio));
      if (g == 1) of_rest = static_cast<T>(std::exp(-gap));
    }
    serves_near = squarings >= 0 && squarings <= 2;
  }
  template <class V>
  V of(V x) const {
    for (int k = 0; k < squarings; ++k) x = x * x;
    return x;
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
