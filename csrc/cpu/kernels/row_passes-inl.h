// The passes over a row whose cut is known, or over one shard of it: extremes, moments of each
// group, loss and gradient.
#pragma once

#include "cpu/kernels/min_max-inl.h"
#include "cpu/kernels/shifts-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// The cut, and the sums if the search for it has computed them already.
template <class T>
struct CutResult {
  T value;
  bool has_sums = false;
  RowSums sums;
  Shift<T> shift[2];
};

template <class T>
struct RowPasses {
  const RowTask& task;
  const Executor& executor;
  Scratch* scratch;
  Row<T> row;
  T temperature, inv_t;

  RowPasses(const RowTask& task, const Executor& executor, Scratch* scratch)
      : task(task),
        executor(executor),
        scratch(scratch),
        row{task.student, task.teacher, task.selection.by_student ? task.student : task.teacher,
            task.classes, task.target,  task.selection.by_student},
        temperature(static_cast<T>(task.weights.temperature)),
        inv_t(T(1) / temperature) {
    if (scratch->segments.size() < static_cast<std::size_t>(row.segments())) {
      scratch->segments.resize(row.segments());
    }
  }

  /// body(segment, begin, end) for every segment.
  template <class Body>
  void for_each_segment(Body body) {
    executor(row.segments(), [&](std::int64_t k) {
      body(scratch->segments[k], k * kSegment, std::min(row.classes, (k + 1) * kSegment));
    });
  }

  template <MassFrom kMass>
  RowSums sum(const LogitRange<T>& window, const Shift<T> (&shift)[2], const MassRule<T>& rule) {
    for_each_segment([&](Segment& segment, std::int64_t begin, std::int64_t end) {
      MomentsAccumulator<T, kMass> moments{
          window, {shift[0], shift[1]}, inv_t, rule, row.by_student};
      segment.in_window.clear();
      row.for_each_tile(
          begin, end, [&](std::int64_t j, std::int64_t count, auto s, auto u, auto r) {
            moments.add(s, u, r, count, static_cast<std::uint32_t>(j - begin), &segment.in_window);
          });
      segment.sums = moments.result();
    });
    RowSums total;
    for (int g = 0; g < 2; ++g) total.group[g].shift = {shift[g].teacher, shift[g].student};
    for (std::int64_t k = 0; k < row.segments(); ++k) total.add(scratch->segments[k].sums);
    return total;
  }

  /// Each segment's extremes, and the whole row's.
  Segment extremes() {
    find_extremes(row, executor, scratch->segments);
    Segment total;
    total.high = total.teacher_high = -kInfinity<double>;
    total.low = kInfinity<double>;
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      const Segment& segment = scratch->segments[k];
      total.high = std::max(total.high, segment.high);
      total.low = std::min(total.low, segment.low);
      total.teacher_high = std::max(total.teacher_high, segment.teacher_high);
    }
    return total;
  }

  /// The moments of a row whose cut and extremes are known, with shifts that keep their digits;
  /// false where the row is invalid (is_invalid()).
  bool accumulate_moments(CutResult<T>* cut, const MassRule<T>& rule, bool whole) {
    const LogitRange<T> known{cut->value, cut->value};
    if (!cut->has_sums) {
      guess_shifts(row, known, temperature, scratch->segments, cut->shift);
      cut->sums = sum<MassFrom::kNothing>(known, cut->shift, rule);
    }
    // With few classes rounding errors do not average out, so use a shift from inside the group.
    const auto has_few = [&](int g) {
      const long long count = cut->sums.group[g].count;
      return count > 0 && count <= kFewClasses;
    };
    const bool rest_has_kl = task.weights.secondary != 0;
    const T rank = row.by_student ? cut->shift[0].student : cut->shift[0].teacher;
    const bool shift_from_outside = !(rank >= cut->value);
    if (!sums_are_accurate(cut->sums.group, rest_has_kl) || (shift_from_outside && has_few(0)) ||
        (rest_has_kl && has_few(1))) {
      if (is_invalid(row, whole)) return false;
      exact_shifts(row, cut->value, temperature, cut->shift);
      cut->sums = sum<MassFrom::kNothing>(known, cut->shift, rule);
    }
    return true;
  }

  /// Gradient and each group's KL, from the moments of the two groups of the whole row.
  RowSummary write_gradient(T cut, const GroupMoments<double>* moments, double (&kl)[2]) {
    GroupCoef<T> coef[2];
    const RowSummary summary = row_coefficients(moments, task.weights, coef);
    const bool rest = coef[1].coef_diff != T(0);
    if (task.gradient.data) {
      rest ? write_all_gradients<true, true>(cut, coef)
           : write_all_gradients<false, true>(cut, coef);
    } else {
      rest ? write_all_gradients<true, false>(cut, coef)
           : write_all_gradients<false, false>(cut, coef);
    }
    kl[0] = kl[1] = 0;
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      kl[0] += scratch->segments[k].kl[0];
      kl[1] += scratch->segments[k].kl[1];
    }
    return summary;
  }

  template <bool kRest, bool kGradient>
  void write_all_gradients(T cut, const GroupCoef<T> (&coef)[2]) {
    const T scale = static_cast<T>(task.gradient_scale);
    for_each_segment([&](Segment& segment, std::int64_t begin, std::int64_t end) {
      write_class_gradients<kRest, kGradient>(row, begin, end, cut, inv_t, coef, scale,
                                              task.gradient, segment.kl);
    });
  }

  void fill_gradient(T value) {
    if (!task.gradient.data) return;
    alignas(64) T tile[kTile];
    std::fill(tile, tile + kTile, value);
    for (std::int64_t j = 0; j < row.classes; j += kTile) {
      write_tile(task.gradient, j, std::min(kTile, row.classes - j), tile);
    }
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
