// A row's summary, one GroupMoments for the primary group and one for the rest.
//
// With a reference pair (m, r) near the group's largest teacher logit and the student logit there,
//   a_j = exp((U_j - m)/T),  b_j = exp((S_j - r)/T),
//   A = sum a_j,  B = sum b_j,  X = sum (b_j - a_j),
// where b_j - a_j is formed as a_j expm1(-e_j), e_j = ((U_j - S_j) - (m - r))/T, as long as
// |e_j| <= 1: it keeps its digits when student and teacher nearly agree, which B - A does not.
// Moving the references multiplies A by f_a and B by f_b and turns X into f_b X + A (f_b - f_a),
// so summaries merge: threads, blocks and ranks use the same merge().
#pragma once

#include <cmath>
#include <limits>

#include "math/elementary.h"
#include "math/hostdevice.h"

namespace gkd {

/// Where a group's exponentials are taken relative to. `T` is float, double or a pack of floats.
/// A component of -inf means that no finite logit has been seen: the sums it refers to are 0.
template <class T>
struct Shift {
  T teacher;  ///< m, raw teacher logit
  T student;  ///< r, raw student logit
};

/// The student reference may lie this many nats under the group's largest student logit: far enough
/// that it is nearly always the one at the teacher's maximum, near enough that no float overflows.
constexpr int kMaxStudentExponent = 30;

/// -inf as 0, so that subtracting a reference never gives NaN.
template <class T>
GKD_HD T finite_or_zero(T x) {
  return x > -std::numeric_limits<T>::infinity() ? x : T(0);
}

/// A reference that serves two: the larger teacher logit with its student logit, unless the other's
/// student logit is so much larger that b would overflow.
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

/// e_j = ((U_j - S_j) - (m - r))/T. Where U_j - S_j is large its rounding would be all of a small
/// e_j; then the offsets from the references are subtracted instead, which are small wherever the
/// class has any mass. `teacher_offset` = U_j - m, `student_offset` = S_j - r.
template <class T>
GKD_HD T class_gap(T student, T teacher, T student_offset, T teacher_offset, Shift<T> shift,
                   ScalarOf<T> inv_temperature) {
  using R = ScalarOf<T>;
  const T gap = teacher - student;
  const T scaled = gap * inv_temperature;
  const auto close = scaled >= R(-4) && scaled <= R(4);
  const T from_gap = gap - (shift.teacher - shift.student);
  const T from_offsets = teacher_offset - student_offset;
  return (close ? from_gap : from_offsets) * inv_temperature;
}

/// `shift` must be finite. Where student and teacher lie close, b - a by a series and no second
/// exponential; else the plain difference.
template <class T>
GKD_HD Terms<T> class_terms(T student, T teacher, Shift<T> shift, ScalarOf<T> inv_temperature) {
  using R = ScalarOf<T>;
  Terms<T> t;
  const T u = teacher - shift.teacher, s = student - shift.student;
  t.exp_teacher = exp_of(T(u * inv_temperature));
  const T e = class_gap(student, teacher, s, u, shift, inv_temperature);
  // False for NaN (-inf in both): the plain form serves.
  const MaskOf<T> near = (e >= R(-1)) & (e <= R(1));
  if (all_true<T>(near)) {
    t.diff = t.exp_teacher * expm1_and_phi(e).expm1;
    t.exp_student = t.exp_teacher + t.diff;
    return t;
  }
  t.exp_student = exp_of(T(s * inv_temperature));
  t.diff = t.exp_student - t.exp_teacher;
  if (all_false<T>(near)) return t;
  const T small = t.exp_teacher * expm1_and_phi(T(near ? e : T{})).expm1;
  t.diff = near ? small : t.diff;
  t.exp_student = near ? t.exp_teacher + small : t.exp_student;
  return t;
}

/// Sums over a group against one reference. `Acc` is the type sums are kept in, `Ref` that of the
/// references and of the exponentials that move them.
template <class Acc, class Ref = Acc>
struct GroupMoments {
  Shift<Ref> shift{-std::numeric_limits<Ref>::infinity(), -std::numeric_limits<Ref>::infinity()};
  Acc sum_teacher = Acc(0), sum_student = Acc(0), sum_diff = Acc(0);  ///< A, B and X
  long long count = 0;

  template <class T>
  GKD_HD void push(Terms<T> t) {
    sum_teacher += static_cast<Acc>(t.exp_teacher);
    sum_student += static_cast<Acc>(t.exp_student);
    sum_diff += static_cast<Acc>(t.diff);
    ++count;
  }

  /// Re-expresses the sums against another reference.
  GKD_HD void move_to(Shift<Ref> to, Ref inv_temperature) {
    // Compared first: -inf minus -inf is no distance.
    const Ref da =
        shift.teacher == to.teacher ? Ref(0) : (shift.teacher - to.teacher) * inv_temperature;
    const Ref db =
        shift.student == to.student ? Ref(0) : (shift.student - to.student) * inv_temperature;
    if (da == Ref(0) && db == Ref(0)) return;
    // db - da, in the form that keeps a class's gap.
    const Ref gap = -class_gap(shift.student, shift.teacher, shift.student - to.student,
                               shift.teacher - to.teacher, to, inv_temperature);
    shift = to;
    const Ref fa = exp_of(da), fb = exp_of(db);
    const bool near = gap >= Ref(-1) && gap <= Ref(1);
    const Ref difference = near ? fa * expm1_and_phi(-gap).expm1 : fb - fa;
    // A sum of 0 stays 0 whatever the factor: a reference of +-inf distance has no sums behind it.
    const auto scaled = [](Acc sum, Ref factor) {
      return sum == Acc(0) ? Acc(0) : sum * static_cast<Acc>(factor);
    };
    sum_diff = scaled(sum_diff, fb) + scaled(sum_teacher, difference);
    sum_teacher = scaled(sum_teacher, fa);
    sum_student = scaled(sum_student, fb);
  }

  /// Adds another summary.
  GKD_HD void merge(GroupMoments other, Ref inv_temperature) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    const Shift<Ref> common = common_shift(shift, other.shift, inv_temperature);
    move_to(common, inv_temperature);
    other.move_to(common, inv_temperature);
    sum_teacher += other.sum_teacher;
    sum_student += other.sum_student;
    sum_diff += other.sum_diff;
    count += other.count;
  }

  /// log(B/A), by X where they nearly agree.
  GKD_HD Acc log_ratio() const {
    using std::log;
    using std::log1p;
    const Acc ratio = sum_diff / sum_teacher;
    if (ratio >= Acc(-0.5) && ratio <= Acc(1)) return log1p(ratio);
    return log(sum_student) - log(sum_teacher);
  }
};

}  // namespace gkd
