// The moments of a row, one GroupMoments for the primary group and one for the rest.
//
// The exponentials of a group are shifted by a pair (m, r), close to the group's largest teacher
// logit and the student logit of that class:
//   a_j = exp((U_j - m)/T),  b_j = exp((S_j - r)/T),
//   A = sum a_j,  B = sum b_j,  X = sum (b_j - a_j),
// where b_j - a_j is computed as a_j expm1(-e_j), e_j = ((U_j - S_j) - (m - r))/T, if |e_j| <= 1:
// this keeps its digits when student and teacher nearly agree, unlike B - A.
// A change of the shift multiplies A by f_a and B by f_b and turns X into f_b X + A (f_b - f_a), so
// moments of parts of a row can be merged: threads, blocks and ranks use the same merge().
#pragma once

#include <cmath>
#include <limits>

#include "math/elementary.h"
#include "math/hostdevice.h"

namespace gkd {

/// What is subtracted from a group's logits before exp(). `T` is float, double or VecF32.
/// A component of -inf means that no finite logit has been seen: the sums relative to it are 0.
template <class T>
struct Shift {
  T teacher;  ///< m, raw teacher logit
  T student;  ///< r, raw student logit
};

/// The student's shift may lie this many nats under the group's largest student logit. That is
/// enough to use nearly always the student logit at the teacher's maximum, and no float overflows.
constexpr int kMaxStudentExponent = 30;

/// -inf as 0, so that subtracting a shift never gives NaN.
template <class T>
GKD_HD T finite_or_zero(T x) {
  return x > -std::numeric_limits<T>::infinity() ? x : T(0);
}

/// One shift for the classes of two: the larger teacher logit with its student logit, unless the
/// other's student logit is so much larger that b would overflow.
template <class T>
GKD_HD Shift<T> common_shift(Shift<T> x, Shift<T> y, T inv_temperature) {
  const Shift<T> high = y.teacher > x.teacher ? y : x;
  const T other = y.teacher > x.teacher ? x.student : y.student;
  const bool overflows = (other - high.student) * inv_temperature > T(kMaxStudentExponent);
  return {high.teacher, overflows ? other : high.student};
}

/// One class's contribution: a_j, b_j and b_j - a_j.
template <class T>
struct Terms {
  T exp_teacher, exp_student, diff;
};

/// e_j = log(a_j/b_j) = ((U_j - S_j) - (m - r))/T. Where U_j - S_j is large, its rounding would be
/// all of a small e_j; then the offsets from the shift are subtracted instead, which are small
/// wherever the class has any mass. `teacher_offset` = U_j - m, `student_offset` = S_j - r.
template <class T>
GKD_HD T class_log_ratio(T student, T teacher, T student_offset, T teacher_offset, Shift<T> shift,
                         ScalarOf<T> inv_temperature) {
  using R = ScalarOf<T>;
  const T gap = teacher - student;
  const T scaled = gap * inv_temperature;
  const auto is_small = scaled >= R(-4) && scaled <= R(4);
  const T from_gap = gap - (shift.teacher - shift.student);
  const T from_offsets = teacher_offset - student_offset;
  return (is_small ? from_gap : from_offsets) * inv_temperature;
}

/// `shift` must be finite. Where student and teacher nearly agree, b - a comes from a series
/// without a second exponential; otherwise it is the plain difference.
template <class T>
GKD_HD Terms<T> class_terms(T student, T teacher, Shift<T> shift, ScalarOf<T> inv_temperature) {
  using R = ScalarOf<T>;
  Terms<T> t;
  const T u = teacher - shift.teacher, s = student - shift.student;
  t.exp_teacher = exp_of(T(u * inv_temperature));
  const T e = class_log_ratio(student, teacher, s, u, shift, inv_temperature);
  // False for NaN (-inf in both): the plain difference is 0 there.
  const MaskOf<T> use_series = (e >= R(-1)) & (e <= R(1));
  if (all_true<T>(use_series)) {
    t.diff = t.exp_teacher * expm1_and_phi(e).expm1;
    t.exp_student = t.exp_teacher + t.diff;
    return t;
  }
  t.exp_student = exp_of(T(s * inv_temperature));
  t.diff = t.exp_student - t.exp_teacher;
  if (all_false<T>(use_series)) return t;
  const T series = t.exp_teacher * expm1_and_phi(T(use_series ? e : T{})).expm1;
  t.diff = use_series ? series : t.diff;
  t.exp_student = use_series ? t.exp_teacher + series : t.exp_student;
  return t;
}

/// Sums over a group relative to one shift. `Acc` is the type of the sums, `Real` that of the shift
/// and of the exponentials that change it.
template <class Acc, class Real = Acc>
struct GroupMoments {
  Shift<Real> shift{-std::numeric_limits<Real>::infinity(), -std::numeric_limits<Real>::infinity()};
  Acc sum_teacher = Acc(0), sum_student = Acc(0), sum_diff = Acc(0);  ///< A, B and X
  long long count = 0;

  template <class T>
  GKD_HD void push(Terms<T> t) {
    sum_teacher += static_cast<Acc>(t.exp_teacher);
    sum_student += static_cast<Acc>(t.exp_student);
    sum_diff += static_cast<Acc>(t.diff);
    ++count;
  }

  /// Re-expresses the sums relative to another shift.
  GKD_HD void change_shift(Shift<Real> next, Real inv_temperature) {
    // Compared first: -inf minus -inf is NaN.
    const Real da =
        shift.teacher == next.teacher ? Real(0) : (shift.teacher - next.teacher) * inv_temperature;
    const Real db =
        shift.student == next.student ? Real(0) : (shift.student - next.student) * inv_temperature;
    if (da == Real(0) && db == Real(0)) return;
    // db - da, computed as for a class, without cancellation.
    const Real ratio_change =
        -class_log_ratio(shift.student, shift.teacher, shift.student - next.student,
                         shift.teacher - next.teacher, next, inv_temperature);
    shift = next;
    const Real fa = exp_of(da), fb = exp_of(db);
    const bool use_series = ratio_change >= Real(-1) && ratio_change <= Real(1);
    const Real difference = use_series ? fa * expm1_and_phi(-ratio_change).expm1 : fb - fa;
    // A sum of 0 stays 0 for every factor: no class stands behind a shift at an infinite distance.
    const auto scaled = [](Acc sum, Real factor) {
      return sum == Acc(0) ? Acc(0) : sum * static_cast<Acc>(factor);
    };
    sum_diff = scaled(sum_diff, fb) + scaled(sum_teacher, difference);
    sum_teacher = scaled(sum_teacher, fa);
    sum_student = scaled(sum_student, fb);
  }

  /// Adds the moments of other classes of the group.
  GKD_HD void merge(GroupMoments other, Real inv_temperature) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    const Shift<Real> common = common_shift(shift, other.shift, inv_temperature);
    change_shift(common, inv_temperature);
    other.change_shift(common, inv_temperature);
    sum_teacher += other.sum_teacher;
    sum_student += other.sum_student;
    sum_diff += other.sum_diff;
    count += other.count;
  }

  /// log(B/A).
  GKD_HD Acc log_ratio() const {
    return log_ratio(sum_diff / sum_teacher, sum_teacher, sum_student);
  }
  /// The same of given sums, from `ratio` = X/A where they nearly agree.
  GKD_HD static Acc log_ratio(Acc ratio, Acc teacher, Acc student) {
    using std::log;
    using std::log1p;
    if (ratio >= Acc(-0.5) && ratio <= Acc(1)) return log1p(ratio);
    return log(student) - log(teacher);
  }
};

}  // namespace gkd
