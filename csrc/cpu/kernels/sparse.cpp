// A row of sparse_loss: the teacher is its group's logits and one number for all other classes; and
// the stages of one whose classes are sharded over ranks.
#include "cpu/kernels/sparse_passes-inl.h"
#include "math/messages.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// What a row's classes, or a shard of them, add up to.
struct SparseSums {
  GroupMoments<double> group[2];  ///< of the rest the student's alone
  OtherSum others;                ///< where there is cross-entropy
};

template <class T>
struct SparseRow : SparsePasses<T> {
  using Passes = SparsePasses<T>;
  using Passes::inv_temperature, Passes::others_from, Passes::scale, Passes::sparse, Passes::task;
  using Passes::Passes;

  /// Merges what the segments found and chooses the group's shift; false where the row is invalid:
  /// NaN or +inf in either network's logits.
  bool merge_segments(OtherSum* rest) {
    constexpr double none = -kInfinity<double>;
    bool is_valid = sparse.rest < kInfinity<double>;
    double teacher_high = none, student_high = none, student_at_top = none;
    for (std::int64_t k = 0; k < Passes::segments; ++k) {
      const SparseSegment& segment = this->scratch->sparse[k];
      is_valid &= segment.is_valid;
      rest->merge(segment.rest, inv_temperature);
      student_high = std::max(student_high, segment.student_high);
      if (!(segment.teacher_high > teacher_high)) continue;
      teacher_high = segment.teacher_high;
      student_at_top = segment.student_at_top;
    }
    // As exact_shifts() chooses it.
    const bool fits = (student_high - student_at_top) * inv_temperature <= 40;
    this->shift.teacher = static_cast<T>(finite_or_zero(teacher_high));
    this->shift.student = static_cast<T>(finite_or_zero(fits ? student_at_top : student_high));
    return is_valid && std::isfinite(task.margin);
  }

  /// Calls f with a constant of `others_from`.
  template <class F>
  void with_others(F f) const {
    others_from == Others::kNone    ? f(Constant<Others::kNone>())
    : others_from == Others::kPower ? f(Constant<Others::kPower>())
                                    : f(Constant<Others::kExp>());
  }

  /// False where the row is invalid.
  bool sum(SparseSums* sums) {
    with_others([&](auto others) { this->template sum_rest_and_scan_group<others.value>(); });
    OtherSum rest;
    if (!merge_segments(&rest)) return false;
    Passes::sum_group(&sums->group[0], &sums->others);
    sums->others = normalized<T>(sums->others, scale);
    GroupMoments<double>& outside = sums->group[1];
    outside.count = task.classes - sparse.size;
    outside.shift = {-kInfinity<double>, rest.high};
    outside.sum_student = outside.sum_diff = rest.sum;
    return true;
  }

  /// The target's logit with its margin.
  double target_logit() const {
    return read_stored<double>(task.student, task.target) - task.margin;
  }

  /// The gradient and the group's KL, from the sums of the whole row, relative to `rest_high` in
  /// the rest, which no student logit there exceeds; -inf where none is finite.
  double write(const GroupMoments<double>* group, double rest_high, const HeadOfRow& head,
               RowSummary* summary) {
    GroupCoef<T> coef[2];
    *summary = row_coefficients(group, task.weights, coef);
    const double weight = task.weights.cross_entropy * scale * task.gradient_scale;
    const auto others = head.cross_entropy.coefficients<double>(head.high, weight);
    if (task.gradient.data) {
      with_others(
          [&](auto how) { this->template write_rest<how.value>(coef[1], rest_high, others); });
    }
    return Passes::write_group(coef[0], others);
  }

  RowResult run() {
    SparseSums sums;
    if (!sum(&sums)) return invalid_row();
    auto& [group, rest] = sums.group;
    // The teacher's sum over the rest is 1 relative to a shift that is the stored number itself.
    const bool has_mass = sparse.rest > -kInfinity<double>;
    const double rest_high = rest.shift.student;
    rest.shift = {has_mass ? sparse.rest / inv_temperature : 0, finite_or_zero(rest_high)};
    rest.sum_teacher = has_mass ? 1 : 0;
    rest.sum_diff = rest.sum_student - rest.sum_teacher;
    // Nothing but -inf.
    if (group.sum_teacher + rest.sum_teacher == 0 || group.sum_student + rest.sum_student == 0) {
      return invalid_row();
    }
    HeadOfRow head{{}, sums.others.high};
    if (others_from != Others::kNone) {
      head.cross_entropy = cross_entropy(sums.others, target_logit(), scale);
    }
    RowResult result;
    result.size = sparse.size;
    result.primary = write(sums.group, rest_high, head, &result.summary);
    result.distillation = row_loss(result.summary, task.weights, result.primary, 0);
    result.cross_entropy = head.cross_entropy.loss;
    result.loss = total_loss(task.weights, result.cross_entropy, result.distillation);
    return result;
  }

  RowResult invalid_row() {
    RowResult result;
    result.loss = result.distillation = std::numeric_limits<double>::quiet_NaN();
    if (others_from != Others::kNone) result.cross_entropy = result.loss;
    fill_gradient<T>(task.gradient, task.classes, static_cast<T>(result.loss));
    return result;
  }
};

template <class T>
RowResult run_sparse_row(const SparseTask& task, const Executor& executor, Scratch* scratch) {
  return SparseRow<T>(task, executor, scratch).run();
}

template <class T>
void sparse_moments(const SparseTask& task, const Executor& executor, Scratch* scratch,
                    double* message) {
  SparseRow<T> row(task, executor, scratch);
  SparseSums sums;
  const bool is_valid = row.sum(&sums);
  if (!is_valid) sums = {};
  for (int g = 0; g < 2; ++g) moments_to_message(sums.group[g], g, message);
  message[kMsgInvalid] = !is_valid;
  if (row.others_from == Others::kNone) return;
  const bool is_here = task.row.target >= 0 && task.row.target < task.row.classes;
  message[kMsgOthers] = sums.others.high;
  message[kMsgOthers + 1] = sums.others.sum;
  message[kMsgTarget] = is_here ? row.target_logit() : -kInfinity<double>;
}

template <class T>
double sparse_gradient(const SparseTask& task, const Executor& executor, Scratch* scratch,
                       const GroupMoments<double>* group, const HeadOfRow& head) {
  SparseRow<T> row(task, executor, scratch);
  row.place_segments();
  RowSummary unused;
  return row.write(group, group[1].shift.student, head, &unused);
}

template <class T>
constexpr SparseKernels kSparseKernels = {&run_sparse_row<T>, &sparse_moments<T>,
                                          &sparse_gradient<T>};

}  // namespace

/// Declared in row.cpp, which puts them into the table.
SparseKernels sparse_kernels(bool in_double) {
  return in_double ? kSparseKernels<double> : kSparseKernels<float>;
}

}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
