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
template <class T>
struct Reference {
  T teacher;  ///< m, raw teacher logit
  T student;  ///< r, raw student logit
};

/// One class's contribution: a, b and b - a.
template <class T>
struct Terms {
  T a, b, x;
};

/// e_j = ((U_j - S_j) - (m - r))/T. Where U_j - S_j is large its rounding would be all of a small
/// e_j; then the offsets from the references are subtracted instead, which are small wherever the
/// class has any mass. `teacher_offset` = U_j - m, `student_offset` = S_j - r.
template <class T>
GKD_HD T class_gap(T student, T teacher, T student_offset, T teacher_offset, Reference<T> ref,
                   ScalarOf<T> inv_temperature) {
  using R = ScalarOf<T>;
  const T gap = teacher - student;
  const T scaled = gap * inv_temperature;
  const auto close = scaled >= R(-4) && scaled <= R(4);
  const T from_gap = gap - (ref.teacher - ref.student);
  const T from_offsets = teacher_offset - student_offset;
  return (close ? from_gap : from_offsets) * inv_temperature;
}

template <class T>
GKD_HD Terms<T> class_terms(T student, T teacher, Reference<T> ref, ScalarOf<T> inv_temperature) {
  using R = ScalarOf<T>;
  Terms<T> t;
  const T u = teacher - ref.teacher, s = student - ref.student;
  t.a = exp_of(T(u * inv_temperature));
  const T e = class_gap(student, teacher, s, u, ref, inv_temperature);
  const auto near = e >= R(-1) && e <= R(1);  // false for NaN (-inf in both): the plain form serves
  const T plain = exp_of(T(s * inv_temperature));
  const T small = t.a * expm1_small(T(near ? -e : T{}));
  t.x = near ? small : plain - t.a;
  t.b = near ? t.a + small : plain;
  return t;
}

/// Sums over a group against one reference. `Acc` is the type sums are kept in.
template <class Acc>
struct GroupMoments {
  Acc ref_teacher = Acc(0), ref_student = Acc(0);
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
  GKD_HD void move_to(Acc teacher, Acc student, Acc inv_temperature) {
    using std::exp;
    using std::expm1;
    const Acc da = (ref_teacher - teacher) * inv_temperature;
    const Acc db = (ref_student - student) * inv_temperature;
    if (da == Acc(0) && db == Acc(0)) return;
    const Acc fa = exp(da), fb = exp(db);
    const Acc gap = db - da;
    const Acc difference = (gap >= Acc(-1) && gap <= Acc(1)) ? fa * expm1(gap) : fb - fa;
    x = fb * x + a * difference;
    a *= fa;
    b *= fb;
    ref_teacher = teacher;
    ref_student = student;
  }

  /// Adds another summary; the larger teacher reference wins, so that nothing overflows.
  GKD_HD void merge(GroupMoments other, Acc inv_temperature) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    if (other.ref_teacher > ref_teacher) {
      const GroupMoments held = *this;
      *this = other;
      other = held;
    }
    other.move_to(ref_teacher, ref_student, inv_temperature);
    a += other.a;
    b += other.b;
    x += other.x;
    count += other.count;
  }

  /// log(q-sum/p-sum) relative to the references: log(B/A), by X where they nearly agree.
  GKD_HD Acc log_ratio() const {
    using std::log;
    using std::log1p;
    const Acc ratio = x / a;
    if (ratio >= Acc(-0.5) && ratio <= Acc(1)) return log1p(ratio);
    return log(b) - log(a);
  }
};

}  // namespace gkd
