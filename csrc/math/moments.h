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

/// One class's contribution: a, b and b - a.
template <class T>
struct Terms {
  T a, b, x;
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
  t.a = exp_of(T(u * inv_temperature));
  const T e = class_gap(student, teacher, s, u, shift, inv_temperature);
  // False for NaN (-inf in both): the plain form serves.
  const MaskOf<T> near = (e >= R(-1)) & (e <= R(1));
  if (all_true<T>(near)) {
    t.x = t.a * expm1_and_phi(e).expm1;
    t.b = t.a + t.x;
    return t;
  }
  t.b = exp_of(T(s * inv_temperature));
  t.x = t.b - t.a;
  if (all_false<T>(near)) return t;
  const T small = t.a * expm1_and_phi(T(near ? e : T{})).expm1;
  t.x = near ? small : t.x;
  t.b = near ? t.a + small : t.b;
  return t;
}

/// Sums over a group against one reference. `Acc` is the type sums are kept in, `Ref` that of the
/// references and of the exponentials that move them.
template <class Acc, class Ref = Acc>
struct GroupMoments {
  Shift<Ref> shift{-std::numeric_limits<Ref>::infinity(), -std::numeric_limits<Ref>::infinity()};
  Acc a = Acc(0), b = Acc(0), x = Acc(0);
  long long count = 0;

  template <class T>
  GKD_HD void push(Terms<T> t) {
    a += static_cast<Acc>(t.a);
    b += static_cast<Acc>(t.b);
    x += static_cast<Acc>(t.x);
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
    const Acc moved = a == Acc(0) ? Acc(0) : a * static_cast<Acc>(difference);
    x = (x == Acc(0) ? Acc(0) : x * static_cast<Acc>(fb)) + moved;
    a = a == Acc(0) ? Acc(0) : a * static_cast<Acc>(fa);
    b = b == Acc(0) ? Acc(0) : b * static_cast<Acc>(fb);
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
    a += other.a;
    b += other.b;
    x += other.x;
    count += other.count;
  }

  /// log(B/A), by X where they nearly agree.
  GKD_HD Acc log_ratio() const {
    using std::log;
    using std::log1p;
    const Acc ratio = x / a;
    if (ratio >= Acc(-0.5) && ratio <= Acc(1)) return log1p(ratio);
    return log(b) - log(a);
  }
};

}  // namespace gkd
