// The sweeps over a row whose cut is known, or over one shard's part of it: extremes, sums of each
// group, loss and gradient.
//
// A template header, because row.cpp and shard.cpp compile it once per instruction set.
#pragma once

#include <array>

#include "cpu/extremes.h"
#include "cpu/shifts.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// The cut, and the sums when the search for it has made them already.
template <class T>
struct Cut {
  T value;
  bool summed = false;
  Sums sums;
  Shift<T> shift[2];
};

/// One row, or a part, under its sweeps.
template <class T>
struct RowKernel {
  const RowTask& task;
  const Executor& each;
  Scratch* scratch;
  Row<T> row;
  T temperature, inv_t;

  RowKernel(const RowTask& task, const Executor& each, Scratch* scratch)
      : task(task),
        each(each),
        scratch(scratch),
        row{task.student, task.teacher, task.how.by_student ? task.student : task.teacher,
            task.classes, task.target},
        temperature(static_cast<T>(task.weights.temperature)),
        inv_t(T(1) / temperature) {
    if (scratch->segments.size() < static_cast<std::size_t>(row.segments())) {
      scratch->segments.resize(row.segments());
    }
  }

  /// body(segment, begin, end) for every segment.
  template <class Body>
  void each_segment(Body body) {
    each(row.segments(), [&](std::int64_t k) {
      body(scratch->segments[k], k * kSegment, std::min(row.classes, (k + 1) * kSegment));
    });
  }

  template <MassFrom kMass>
  Sums sum(const LogitRange<T>& window, const Shift<T> (&shift)[2], const MassRule<T>& rule) {
    each_segment([&](Segment& segment, std::int64_t begin, std::int64_t end) {
      Summer<T, kMass> summer{window, {shift[0], shift[1]}, inv_t, rule, task.how.by_student};
      segment.window.clear();
      row.each_block(begin, end, [&](std::int64_t j, std::int64_t count, auto s, auto u, auto r) {
        summer.add(s, u, r, count, static_cast<std::uint32_t>(j - begin), &segment.window);
      });
      segment.sums = summer.result();
    });
    Sums total;
    for (std::int64_t k = 0; k < row.segments(); ++k) total.merge(scratch->segments[k].sums);
    return total;
  }

  /// Each segment's extremes, and the whole row's.
  Segment extremes() {
    find_extremes(row, task.how.by_student, each, scratch->segments);
    Segment all;
    all.high = all.teacher_high = -kInfinity<double>;
    all.low = kInfinity<double>;
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      const Segment& segment = scratch->segments[k];
      all.high = std::max(all.high, segment.high);
      all.low = std::min(all.low, segment.low);
      all.teacher_high = std::max(all.teacher_high, segment.teacher_high);
    }
    return all;
  }

  /// The sums of a row whose cut and extremes are known, against references that keep their digits;
  /// false where the row is bad (is_bad()).
  bool accumulate_moments(Cut<T>* cut, const MassRule<T>& rule, bool whole) {
    const LogitRange<T> known{cut->value, cut->value};
    if (!cut->summed) {
      guess_shifts(row, known, task.how.by_student, temperature, scratch->segments, cut->shift);
      cut->sums = sum<MassFrom::kNothing>(known, cut->shift, rule);
    }
    // A few classes average no rounding out: their exponents are taken from one of their own.
    const auto few = [&](int g) {
      return cut->sums.count[g] > 0 && cut->sums.count[g] <= kFewClasses;
    };
    const bool rest_has_kl = task.weights.secondary != 0;
    const T rank = task.how.by_student ? cut->shift[0].student : cut->shift[0].teacher;
    const bool borrowed = !(rank >= cut->value);
    if (!sums_are_accurate(cut->sums, rest_has_kl) || (borrowed && few(0)) ||
        (rest_has_kl && few(1))) {
      if (is_bad(row, whole)) return false;
      exact_shifts(row, cut->value, temperature, cut->shift);
      cut->sums = sum<MassFrom::kNothing>(known, cut->shift, rule);
    }
    return true;
  }

  static std::array<GroupMoments<double>, 2> moments_of(const Cut<T>& cut) {
    std::array<GroupMoments<double>, 2> moments;
    for (int g = 0; g < 2; ++g) {
      moments[g].shift = {cut.shift[g].teacher, cut.shift[g].student};
      moments[g].sum_teacher = cut.sums.sum_teacher[g];
      moments[g].sum_student = cut.sums.sum_student[g];
      moments[g].sum_diff = cut.sums.sum_diff[g];
      moments[g].count = cut.sums.count[g];
    }
    return moments;
  }

  /// Gradient and each group's KL, from the two summaries of the whole row.
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
    each_segment([&](Segment& segment, std::int64_t begin, std::int64_t end) {
      write_class_gradients<kRest, kGradient>(row, begin, end, cut, inv_t, coef, scale,
                                              task.gradient, segment.kl);
    });
  }

  void fill_gradient(T value) {
    if (!task.gradient.data) return;
    alignas(64) T block[kBlock];
    std::fill(block, block + kBlock, value);
    for (std::int64_t j = 0; j < row.classes; j += kBlock) {
      write(task.gradient, j, std::min(kBlock, row.classes - j), block);
    }
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
