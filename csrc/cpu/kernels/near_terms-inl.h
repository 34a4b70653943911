// The terms of classes whose teacher and student logits are within a few nats of each other, as
// nearly all are: no branch, and a series for every log ratio.
#pragma once

#include "cpu/kernels/load_store-inl.h"
#include "math/loss.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// f(field of each of `coefs`) for every field.
template <class V, class F, class... Coefs>
GroupCoef<V> map_fields(F f, const Coefs&... coefs) {
  return {{f(coefs.shift.teacher...), f(coefs.shift.student...)},
          f(coefs.inv_sum_teacher...),
          f(coefs.inv_sum_student...),
          f(coefs.log_ratio...),
          f(coefs.coef_q...),
          f(coefs.coef_diff...)};
}

template <auto value>
using Constant = std::integral_constant<decltype(value), value>;

/// exp(-d), expm1(-d) and phi(d).
template <class V>
struct WideTerms {
  V exp, expm1, phi;
};

/// For |d| <= 40: d = k ln2 + r, |r| <= ln2/2. With s = 2^-k:
///   expm1(-d) = (s - 1) + s expm1(-r),  phi(d) = s phi(r) - (s - 1) r + (s - 1 + k ln2).
/// k = 0 leaves the series. Otherwise no sum cancels to less than a fifth of its terms.
inline WideTerms<VecF32> wide_terms(VecF32 d) {
  const VecF32 shifted = d * 1.44269504f + 12582912.0f;  // as in exp_polynomial()
  const VecF32 k = shifted - 12582912.0f;
  VecF32 r = d - k * 0.693145752f;
  r = r - k * 1.42860677e-6f;
  // phi(r)/r^2 = 1/2! - r/3! + ..., the best polynomial of degree 4: its relative error is 1.3e-7.
  const VecF32 r2 = r * r;
  const VecF32 phi = r2 * ((0.5f - r * 0.166665771f) +
                           r2 * ((0.0416668537f - r * 0.00836317021f) + r2 * 0.00139012974f));
  const VecF32 s = from_bits(bits_of(splat<VecF32>(1.0f)) - (bits_of(shifted) << 23));
  const VecF32 less = s - 1.0f;
  return {s * (phi - r) + s, s * (phi - r) + less,
          s * phi - (less * r - (k * 0.693147182f + less))};
}

/// Not called: see holds().
inline WideTerms<double> wide_terms(double) { return {}; }

/// What the vectors of a pass have in common.
template <class T>
struct NearTerms {
  using V = VecOf<T>;
  T gap[2], inv_t;       ///< of the groups' shifts, m - r; 1/T
  T limit;               ///< of (T e_j)^2
  bool from_gap = true;  ///< e_j comes from U - S, as in class_log_ratio() where that is small

  NearTerms(const Shift<T> (&shift)[2], T inv_t)
      : gap{shift[0].teacher - shift[0].student, shift[1].teacher - shift[1].student},
        inv_t(inv_t),
        limit(T(kMaxNats * kMaxNats) / (inv_t * inv_t)) {
    for (T g : gap) from_gap &= std::abs(g) * inv_t <= T(4);
    if (!(inv_t > T(1e-15) && inv_t < T(1e15))) limit = T(-1);  // then 1/T^2 may not be finite
  }

  /// T e_j.
  V log_ratio(V student, V teacher, Shift<V> shift, V shift_gap) const {
    if (from_gap) return teacher - student - shift_gap;
    return (teacher - shift.teacher) - (student - shift.student);
  }
  /// Whether all lanes are near, given T e_j; then no logit is NaN or infinite. False in double,
  /// whose exponentials are the library's. The choice does not depend on U - S itself: adding a
  /// number to all of a row's logits must not change a bit where no logit is rounded.
  bool holds(V ratio) const {
    if constexpr (!std::is_same_v<T, float>) return false;
    return compare_bits(splat<V>(limit), V(ratio * ratio)) == kAllTrue<V>;
  }

  V exp_teacher(V teacher, V shift) const { return exp_of(V((teacher - shift) * inv_t)); }
  /// class_terms(), of a_j and T e_j.
  Terms<V> terms(V a, V ratio) const {
    const WideTerms<V> t = wide_terms(V(ratio * inv_t));
    return {a, a * t.exp, a * t.expm1};
  }

 private:
  static constexpr int kMaxNats = 12;  // far from where an exponential overflows
};

/// The gradient of such classes from a_j and d_j: scale (coef_q q^ + coef_diff (q^ - p^)) =
/// a_j (of_p + of_diff expm1(-d_j)).
template <class T>
struct NearGradient : NearTerms<T> {
  T of_p[2], of_diff[2];

  NearGradient(const GroupCoef<T> (&coef)[2], T inv_t, T scale)
      : NearTerms<T>({coef[0].shift, coef[1].shift}, inv_t) {
    for (int g = 0; g < 2; ++g) {
      const T of_teacher = scale * coef[g].inv_sum_teacher;
      of_p[g] = coef[g].coef_q * of_teacher;
      of_diff[g] = (coef[g].coef_q + coef[g].coef_diff) * of_teacher;
      if (!(std::abs(coef[g].log_ratio) <= T(16))) this->limit = T(-1);
    }
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
