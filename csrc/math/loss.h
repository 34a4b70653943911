// The row loss and the gradient's row constants (the three terms of arXiv 2304.04462).
//
// Per group, d_j = log(p^_j / q^_j) with p^ = p/P, q^ = q/Q inside the group; then
//   KL(p^||q^) = sum p^ phi(d),  phi(d) = expm1(-d) + d,   q^ - p^ = p^ expm1(-d),
// every term of the first is >= 0, and neither cancels when student and teacher nearly agree.
#pragma once

#include <cmath>

#include "math/moments.h"

namespace gkd {

/// The settings of one call that a row's loss and gradient need.
struct Weights {
  double temperature = 4.0;
  double primary = 8.0;
  double binary = 1.0;
  double secondary = 0.0;
  bool coupled = false;
  double scale = 1.0;          ///< multiplies the logits of both networks
  double distillation = 1.0;   ///< of the three terms together, beside cross-entropy
  double cross_entropy = 0.0;  ///< 0: it is not computed

  /// T/scale, which divides the logits as they are given. The loss has T itself.
  GKD_HD double exponent_temperature() const { return temperature / scale; }
};

/// How the gradient of a row loss is stored, in two factors: forward * backward = weight, the
/// reduction's factor (> 0). backward is a power of two, so multiplying by it in the backward is
/// exact.
///
/// The small entries of a float16 gradient would underflow by the 1/B of "mean". So it is stored
/// without that factor, times the power of two that brings its largest possible entry,
/// scale (|w_d| T (|w_b| + max(|w_p|, |w_s|)) + |w_ce|), close to 2^15. Other dtypes have the
/// exponents of float32: backward is 1, and the backward does nothing when grad_output is 1.
struct GradScale {
  double forward, backward;
};

/// The exponent of the least power of two >= x, for x > 0.
GKD_HD int ceil_log2(double x) {
  int exponent = 0;
  return std::frexp(x, &exponent) == 0.5 ? exponent - 1 : exponent;
}

GKD_HD GradScale grad_scale(double weight, const Weights& w, bool is_float16) {
  if (!is_float16) return {weight, 1};
  const double largest = std::fmax(std::fabs(w.primary), std::fabs(w.secondary));
  const double terms = w.temperature * (std::fabs(w.binary) + largest);
  const double bound = w.scale * (std::fabs(w.distillation) * terms + std::fabs(w.cross_entropy));
  int exponent = bound > 0 ? 15 - ceil_log2(bound) : 0;
  // Both factors stay normal float32 numbers. A gradient that would need more than 2^80
  // underflows float16 anyway.
  exponent = exponent > 80 ? 80 : exponent < -110 ? -110 : exponent;
  const int weight_exponent = ceil_log2(weight);
  return {std::ldexp(weight, exponent - weight_exponent),
          std::ldexp(1.0, weight_exponent - exponent)};
}

/// What the last pass over a group needs: elementwise, no division.
template <class T>
struct GroupCoef {
  Shift<T> shift{};
  T inv_sum_teacher{};  ///< p^_j = a_j inv_sum_teacher
  T inv_sum_student{};  ///< q^_j = b_j inv_sum_student
  T log_ratio{};        ///< d_j = e_j + log_ratio
  T coef_q{};           ///< gradient = scale (coef_q q^_j + coef_diff (q^_j - p^_j))
  T coef_diff{};
};

/// p^, q^ - p^ and p^ phi(d) of one class.
template <class T>
struct ClassTerms {
  T p, diff, kl;
};

/// q^ of one class.
template <class T>
GKD_HD T class_student(T student, const GroupCoef<T>& g, ScalarOf<T> inv_temperature) {
  return exp_of(T((student - g.shift.student) * inv_temperature)) * g.inv_sum_student;
}

/// From the series where q^ and p^ differ by a factor of e at most, otherwise from their plain
/// difference. a_j is given.
template <class T>
GKD_HD ClassTerms<T> class_kl(T student, T teacher, const GroupCoef<T>& g,
                              ScalarOf<T> inv_temperature, T exp_teacher) {
  using R = ScalarOf<T>;
  ClassTerms<T> c;
  const T u_offset = teacher - g.shift.teacher, s_offset = student - g.shift.student;
  c.p = exp_teacher * g.inv_sum_teacher;
  const T d =
      class_log_ratio(student, teacher, s_offset, u_offset, g.shift, inv_temperature) + g.log_ratio;
  const MaskOf<T> use_series = (d >= R(-1)) & (d <= R(1));
  if (all_true<T>(use_series)) {
    const Expm1Phi<T> series = expm1_and_phi(d);
    c.diff = c.p * series.expm1;
    c.kl = c.p * series.phi;
    return c;
  }
  c.diff = exp_of(T(s_offset * inv_temperature)) * g.inv_sum_student - c.p;
  c.kl = c.diff + (c.p == R(0) ? T{} : c.p * d);
  if (all_false<T>(use_series)) return c;
  const Expm1Phi<T> series = expm1_and_phi(T(use_series ? d : T{}));
  c.diff = use_series ? c.p * series.expm1 : c.diff;
  c.kl = use_series ? c.p * series.phi : c.kl;
  return c;
}

/// The same with a_j computed.
template <class T>
GKD_HD ClassTerms<T> class_kl(T student, T teacher, const GroupCoef<T>& g,
                              ScalarOf<T> inv_temperature) {
  return class_kl(student, teacher, g, inv_temperature,
                  exp_of(T((teacher - g.shift.teacher) * inv_temperature)));
}

/// Gradient with respect to one student logit: the coefficients contain temperature and weights.
template <class T>
GKD_HD T class_grad(ClassTerms<T> c, const GroupCoef<T>& g) {
  // Two products, so that a coefficient of exactly 0 is never multiplied by an infinite term.
  return g.coef_q * (c.p + c.diff) + g.coef_diff * c.diff;
}

/// Masses and weights of one row, in double: there are few per row.
struct RowSummary {
  double p = 0, p_rest = 0, q = 0, q_rest = 0;  ///< masses of the primary group and the rest
  double binary = 0;                            ///< Binary-KD, unweighted
  double kl_weight[2] = {0, 0};                 ///< factor of each group's KL in the row loss
  double q_minus_p = 0;                         ///< Q - P, from the smaller side
};

/// How row_coefficients() calls a function of i for i in [0, kN): in turn. A warp has one lane for
/// each i (cuda/block/row_coefficients.cuh), since these calls take most of a row's time there.
struct InTurn {
  template <int kN, class F>
  GKD_HD void each(double (&result)[kN], F f) const {
    for (int i = 0; i < kN; ++i) result[i] = f(i);
  }
};

/// log(P/Q) from w = logit(Q) - logit(P): two classes with e = 0 and w.
GKD_HD double log_of_masses(double w, double p_rest) {
  return std::log1p(p_rest * expm1_and_phi(w).expm1);
}

/// Binary-KD and Q - P from the masses and w = logit(Q) - logit(P), which is known more accurately
/// than the masses. `l`, `u` and `v`: functions that give log(P/Q), for |w| <= 1 only, logit(P) and
/// logit(Q).
template <class Calls, class L, class U, class V>
GKD_HD void binary_term(double w, L l, U u, V v, RowSummary* row, const Calls& calls) {
  if (w >= -1 && w <= 1) {
    // phi and expm1 of log(P/Q) and log(P'/Q').
    const double d = l(), d_rest = w + d;
    double value[4];
    calls.each(value, [&](int i) {
      const Expm1Phi<double> series = expm1_and_phi(i % 2 == 0 ? d : d_rest);
      return i < 2 ? series.phi : series.expm1;
    });
    row->binary = row->p * value[0] + row->p_rest * value[1];
    row->q_minus_p = row->p <= row->p_rest ? row->p * value[2] : -row->p_rest * value[3];
  } else {
    auto log_sigmoid = [](double x) {
      return x >= 0 ? -std::log1p(std::exp(-x)) : x - std::log1p(std::exp(x));
    };
    const double logit[2] = {u(), v()};
    double log_mass[4];  // of P, P', Q and Q'
    calls.each(log_mass,
               [&](int i) { return log_sigmoid(i % 2 == 0 ? logit[i / 2] : -logit[i / 2]); });
    const double log_in = log_mass[0] - log_mass[2];
    const double log_out = log_mass[1] - log_mass[3];
    row->binary =
        (row->p > 0 ? row->p * log_in : 0) + (row->p_rest > 0 ? row->p_rest * log_out : 0);
    row->q_minus_p = row->p <= row->p_rest ? row->q - row->p : row->p_rest - row->q_rest;
  }
}

/// Row constants from the moments of the two groups (index 0: primary, 1: the rest).
template <class T, class Calls = InTurn>
GKD_HD RowSummary row_coefficients(const GroupMoments<double>* m, const Weights& w,
                                   GroupCoef<T> (&coef)[2], const Calls& calls = {}) {
  using std::log;
  RowSummary row;
  const double inv_t = 1 / w.exponent_temperature();
  // Of the gradient with respect to the logits as they are given.
  const double slope = w.temperature * w.scale * w.distillation;
  const bool both = m[0].count > 0 && m[1].count > 0;
  // log of the groups' shifts over each other, and each group's sum relative to the higher shift.
  const double teacher_shift = both ? (m[0].shift.teacher - m[1].shift.teacher) * inv_t : 0;
  const double student_shift = both ? (m[0].shift.student - m[1].shift.student) * inv_t : 0;
  const auto relative = [](double sum, double shift) {
    return shift < 0 && sum > 0 ? sum * exp_of(shift) : sum;
  };
  double teacher[2] = {m[0].sum_teacher, m[1].sum_teacher};
  double student[2] = {m[0].sum_student, m[1].sum_student};
  // Where the groups' shifts are the same, all logs are taken side by side.
  const bool common = teacher_shift == 0 && student_shift == 0;
  if (!common) {
    for (int g = 0; g < 2; ++g) {
      teacher[g] = relative(teacher[g], g == 0 ? teacher_shift : -teacher_shift);
      student[g] = relative(student[g], g == 0 ? student_shift : -student_shift);
    }
  }
  // By group: log(B/A), the masses, and what a group's sums are divided by. Then log(B/A) of the
  // row.
  constexpr int kOfRow = 10;
  double value[kOfRow + 1];
  calls.each(value, [&](int i) {
    const int g = i % 2, kind = i == kOfRow ? 0 : i / 2;
    const auto sum = [&](double of_group, double of_other) {
      return i == kOfRow ? of_group + of_other : of_group;
    };
    const double a = sum(m[g].sum_teacher, m[1].sum_teacher);
    const double b = sum(m[g].sum_student, m[1].sum_student);
    const double over = kind == 0   ? sum(m[g].sum_diff, m[1].sum_diff)
                        : kind == 1 ? teacher[g]
                        : kind == 2 ? student[g]
                                    : 1;
    const double under = kind == 1   ? teacher[0] + teacher[1]
                         : kind == 2 ? student[0] + student[1]
                         : kind == 4 ? b
                                     : a;
    const double quotient = under > 0 ? over / under : 0;
    if (kind != 0 || (i == kOfRow && !(both && common))) return quotient;
    // A group whose student mass is 0 keeps d = e = +inf; one whose teacher mass is 0 has no KL.
    return a > 0 && b > 0 ? GroupMoments<double>::log_ratio(quotient, a, b) : 0.0;
  });
  const double* ratio = value;
  if (both) {
    row.p = value[2];
    row.p_rest = value[3];
    row.q = value[4];
    row.q_rest = value[5];
    const auto u = [&] { return teacher_shift + (log(m[0].sum_teacher) - log(m[1].sum_teacher)); };
    const auto v = [&] { return student_shift + (log(m[0].sum_student) - log(m[1].sum_student)); };
    const bool all_positive = m[0].sum_teacher > 0 && m[1].sum_teacher > 0 &&
                              m[0].sum_student > 0 && m[1].sum_student > 0;
    // log(Q/Q') - log(P/P'): from the groups' shifts plus their log ratios.
    const double shift_diff =
        (m[0].shift.student - m[0].shift.teacher) - (m[1].shift.student - m[1].shift.teacher);
    const double w = all_positive ? shift_diff * inv_t + (ratio[0] - ratio[1]) : v() - u();
    const auto l = [&] {
      return all_positive && common ? value[kOfRow] - ratio[0] : log_of_masses(w, row.p_rest);
    };
    binary_term(w, l, u, v, &row, calls);
  } else {
    row.p = row.q = m[0].count > 0 ? 1 : 0;
    row.p_rest = row.q_rest = m[1].count > 0 ? 1 : 0;
  }
  const double weight[2] = {w.primary, w.secondary};
  const double mass[2] = {row.p, row.p_rest};
  for (int g = 0; g < 2; ++g) {
    GroupCoef<T>& c = coef[g];
    c = GroupCoef<T>{};
    if (m[g].count == 0) continue;
    row.kl_weight[g] = m[g].sum_teacher > 0 ? weight[g] * (w.coupled ? mass[g] : 1.0) : 0.0;
    c.shift.teacher = static_cast<T>(finite_or_zero(m[g].shift.teacher));
    c.shift.student = static_cast<T>(finite_or_zero(m[g].shift.student));
    c.inv_sum_teacher = static_cast<T>(value[6 + g]);
    c.inv_sum_student = static_cast<T>(value[8 + g]);
    c.log_ratio = static_cast<T>(ratio[g]);
    c.coef_q = static_cast<T>(slope * w.binary * (g == 0 ? row.q_minus_p : -row.q_minus_p));
    c.coef_diff = static_cast<T>(slope * row.kl_weight[g]);
  }
  return row;
}

/// T^2 (w_b binary + w_p primary + w_s secondary); a weight of 0 contributes 0, never 0*inf.
GKD_HD double row_loss(const RowSummary& row, const Weights& w, double primary, double secondary) {
  double sum = 0;
  if (w.binary != 0) sum += w.binary * row.binary;
  if (row.kl_weight[0] != 0) sum += row.kl_weight[0] * primary;
  if (row.kl_weight[1] != 0) sum += row.kl_weight[1] * secondary;
  return w.temperature * w.temperature * sum;
}

/// w_ce cross_entropy + w_d distillation; a weight of 0 contributes 0, never 0*inf.
GKD_HD double total_loss(const Weights& w, double cross_entropy, double distillation) {
  const double weighted = w.distillation != 0 ? w.distillation * distillation : 0;
  return w.cross_entropy != 0 ? weighted + w.cross_entropy * cross_entropy : weighted;
}

}  // namespace gkd
