// A row of sparse_loss: the teacher is its group's logits and one number for all other classes.
#include "cpu/kernels/sparse_passes-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

template <class T>
struct SparseRow : SparsePasses<T> {
  using Passes = SparsePasses<T>;
  using Passes::inv_temperature, Passes::others_from, Passes::scale, Passes::sparse, Passes::task;
  using Passes::Passes;

  /// Merges what the segments found; false where the row is invalid: NaN or +inf in either
  /// network's logits, or nothing but -inf.
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
    return is_valid && std::max(student_high, rest->high) > none &&
           std::max(teacher_high, sparse.rest) > none;
  }

  /// Calls f with a constant of `others_from`.
  template <class F>
  void with_others(F f) const {
    others_from == Others::kNone    ? f(Constant<Others::kNone>())
    : others_from == Others::kPower ? f(Constant<Others::kPower>())
                                    : f(Constant<Others::kExp>());
  }

  RowResult run() {
    with_others([&](auto others) { this->template sum_rest_and_scan_group<others.value>(); });
    GroupMoments<double> group[2];
    OtherSum rest, others;
    if (!merge_segments(&rest) || !std::isfinite(task.margin)) return invalid_row();
    Passes::sum_group(&group[0], &others);
    // The teacher's sum over the rest is 1 relative to a shift that is the stored number itself.
    const bool has_mass = sparse.rest > -kInfinity<double>;
    group[1].count = task.classes - sparse.size;
    group[1].shift = {has_mass ? sparse.rest / inv_temperature : 0, finite_or_zero(rest.high)};
    group[1].sum_teacher = has_mass ? 1 : 0;
    group[1].sum_student = rest.sum;
    group[1].sum_diff = rest.sum - group[1].sum_teacher;
    RowResult result;
    CrossEntropy entropy;
    if (others_from != Others::kNone) {
      others = normalized<T>(others, scale);
      const LogitsRow& s = task.student;
      entropy = cross_entropy(others, read_stored<double>(s, task.target) - task.margin, scale);
    }
    GroupCoef<T> coef[2];
    result.summary = row_coefficients(group, task.weights, coef);
    const double weight = task.weights.cross_entropy * scale * task.gradient_scale;
    const auto entropy_coef = entropy.coefficients<double>(others.high, weight);
    if (task.gradient.data) {
      with_others(
          [&](auto how) { this->template write_rest<how.value>(coef[1], rest, entropy_coef); });
    }
    result.size = sparse.size;
    result.primary = Passes::write_group(coef[0], entropy_coef);
    result.distillation = row_loss(result.summary, task.weights, result.primary, 0);
    result.cross_entropy = entropy.loss;
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

}  // namespace

SparseKernel sparse_kernel(bool in_double) {
  return in_double ? &run_sparse_row<double> : &run_sparse_row<float>;
}

}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
