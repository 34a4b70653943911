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

/// x to the power 1, 2 or 4, squared 0, 1 or 2 times.
template <class V>
V repeated_square(V x, int times) {
  if (times == 0) return x;
  const V square = x * x;
  return times == 1 ? square : V(square * square);
}

/// k where T = 2^k is 1, 2 or 4, so that exp(s) is exp(s/T) squared k times, with T times its
/// error; else -1.
inline int squarings_of(double temperature) {
  return temperature == 1 ? 0 : temperature == 2 ? 1 : temperature == 4 ? 2 : -1;
}

/// Powers of b_j serve where the classes that matter are less than so many nats from its shift: U_j
/// is then rounded to 2^-20.
inline constexpr double kMaxPowerNats = 32;

/// The same sum with a reference that makes it 1, but for the rounding to T: no exponential
/// relative to it is larger than 1, and of those that matter none has a large exponent.
template <class T>
OtherSum normalized(const OtherSum& others, double scale) {
  const T high = static_cast<T>(others.high + std::log(others.sum) / scale);
  if (!std::isfinite(high)) return others;
  return {high, others.sum * std::exp((others.high - static_cast<double>(high)) * scale)};
}

/// How the last pass computes cross-entropy's exponentials: not at all; each; or, by
/// squarings_of(), as powers of exp((S_j - r)/T), which it has already.
enum class Others { kNone, kExp, kPower };

/// exp(scale (x - high)) times CrossEntropyCoef::factor from terms of the row: a power of them
/// times a number.
template <class T>
struct OtherPowers {
  int squarings = -1;  ///< negative: T is no such number, or a number here has no digits
  T of_q[2]{};         ///< by group, of the power of a_j exp(-d_j)
  T of_rest{};         ///< in the rest, b_j = of_rest exp(scale (x - high)/T)

  OtherPowers() = default;
  OtherPowers(const GroupMoments<double>* moments, const Weights& w,
              const CrossEntropyCoef<double>& cross_entropy)
      : squarings(squarings_of(w.temperature)) {
    constexpr double kMostNats = 60;  // of a number that a float holds
    const double inv_t = 1 / w.exponent_temperature();
    for (int g = 0; g < 2; ++g) {
      if (moments[g].count == 0) continue;
      const double gap = (finite_or_zero(moments[g].shift.student) - cross_entropy.high) * inv_t;
      const bool has_ratio = moments[g].sum_teacher > 0 && moments[g].sum_student > 0;
      const double nats = gap + (has_ratio ? moments[g].log_ratio() : 0);
      if (!(std::abs(gap) * w.temperature <= kMaxPowerNats &&
            std::abs(nats) * w.temperature <= kMostNats)) {
        squarings = -1;
      }
      of_q[g] = static_cast<T>(cross_entropy.factor * std::exp(nats * w.temperature));
      if (g == 1) of_rest = static_cast<T>(std::exp(-gap));
    }
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
