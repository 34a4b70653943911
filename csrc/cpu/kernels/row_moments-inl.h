// The passes over a row before its gradient: extremes, and the moments of each group.
#pragma once

#include "cpu/kernels/shifts-inl.h"
#include "cpu/kernels/sums-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// A cut, and the moments if they are known already.
template <class T>
struct CutResult {
  T value = -kInfinity<T>;
  bool has_sums = false;
  Shift<T> shift[2]{};
  RowSums sums;
};

template <class T>
struct RowMoments {
  const RowTask& task;
  const Executor& executor;
  Scratch* scratch;
  const bool by_student = task.selection.by_student;
  const Row<T> row{task.student, task.teacher, by_student ? task.student : task.teacher,
                   task.classes, task.target,  by_student};
  const T temperature = static_cast<T>(task.weights.exponent_temperature());
  const T inv_t = T(1) / temperature;
  const bool with_cross_entropy = task.weights.cross_entropy != 0;
  const int squarings = squarings_of(task.weights.temperature);
  /// The gradient's memory holds a_j of every class.
  bool kept = false;

  RowMoments(const RowTask& task, const Executor& executor, Scratch* scratch)
      : task(task), executor(executor), scratch(scratch) {
    const auto segments = static_cast<std::size_t>(row.segments());
    scratch->segments.resize(std::max(scratch->segments.size(), segments));
  }

  /// body(segment, begin, end) for every segment.
  template <class Body>
  void for_each_segment(Body body) {
    executor(row.segments(), [&](std::int64_t k) {
      body(scratch->segments[k], k * kSegment, std::min(row.classes, (k + 1) * kSegment));
    });
  }

  template <MassFrom kMass>
  RowSums sum(const LogitRange<T>& window, const Shift<T> (&shift)[2], const MassRule<T>* rule) {
    if (!with_cross_entropy) return sum_classes<kMass, false>(window, shift, rule);
    RowSums sums = sum_classes<kMass, true>(window, shift, rule);
    if (squarings >= 0 && !powers_are_accurate(sums)) sums.others = sum_others();
    sums.others = normalized<T>(sums.others, task.weights.scale);
    return sums;
  }

  /// As sums_are_accurate(), of cross-entropy's sum.
  bool powers_are_accurate(const RowSums& sums) const {
    const double scale = task.weights.scale;
    const double log_sum = sums.others.high * scale + std::log(sums.others.sum);
    const auto is_near = [&](const GroupMoments<double>& m) {
      return m.count == 0 || std::abs(log_sum - m.shift.student * scale) <= kMaxPowerNats;
    };
    return is_near(sums.group[0]) && is_near(sums.group[1]);
  }

  /// Cross-entropy's sum by an exponential for each class.
  OtherSum sum_others() {
    for_each_segment([&](Segment& segment, std::int64_t begin, std::int64_t end) {
      OthersAccumulator<T> others{static_cast<T>(task.weights.scale)};
      row.for_each_tile(begin, end,
                        [&](std::int64_t, std::int64_t count, auto, auto, auto, auto logits) {
                          others.add(logits, count);
                        });
      segment.sums.others = others.result();
    });
    OtherSum total;
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      total.merge(scratch->segments[k].sums.others, task.weights.scale);
    }
    return total;
  }

  /// Keeps the a_j in the gradient's memory, where that has their dtype.
  template <MassFrom kMass, bool kOthers>
  RowSums sum_classes(const LogitRange<T>& window, const Shift<T> (&shift)[2],
                      const MassRule<T>* rule) {
    kept = task.gradient.data && task.gradient.dtype == kDtype<T>;
    const OthersAccumulator<T> none{static_cast<T>(task.weights.scale)};
    for_each_segment([&](Segment& segment, std::int64_t begin, std::int64_t end) {
      auto& undecided = std::get<LogitPairs<T>>(segment.undecided);
      undecided.s.clear();
      undecided.u.clear();
      MomentsAccumulator<T, kMass, kOthers> moments{
          window, {shift[0], shift[1]}, inv_t, rule, by_student, &undecided, squarings, none};
      row.for_each_tile(
          begin, end, [&](std::int64_t j, std::int64_t count, auto s, auto u, auto r, auto others) {
            alignas(64) T buffer[kTile];
            T* out = kept ? writable_tile(task.gradient, j, count, buffer) : buffer;
            moments.add(s, u, r, others, count, row.has_target(j, count), out);
            if (kept) write_tile(task.gradient, j, count, out);
          });
      segment.sums = moments.result();
    });
    RowSums total;
    for (int g = 0; g < 2; ++g) total.group[g].shift = {shift[g].teacher, shift[g].student};
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      const RowSums& sums = scratch->segments[k].sums;
      total.add(sums);
      if (kOthers) total.others.merge(sums.others, task.weights.scale);
    }
    return total;
  }

  /// Each segment's extremes, and the whole row's. A NaN may be missed here: it is detected later,
  /// in the sums.
  Segment extremes() {
    const auto extremes = [](const LogitsRow& logits, std::int64_t begin, std::int64_t end) {
      return is_half_row(logits) && !logits.lowers(begin, end)
                 ? extremes_of_half<T>(logits, begin, end)
                 : extremes_of<T>(logits, begin, end);
    };
    for_each_segment([&](Segment& segment, std::int64_t begin, std::int64_t end) {
      const Extremes<T> ranking = extremes(row.rank, begin, end);
      segment.high = ranking.high;
      segment.low = ranking.low;
      segment.teacher_high = row.by_student ? extremes(row.u, begin, end).high : ranking.high;
    });
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
  bool accumulate_moments(CutResult<T>* cut, bool whole) {
    const LogitRange<T> known{cut->value, cut->value};
    if (!cut->has_sums) {
      guess_shifts(row, cut->value, temperature, scratch->segments, cut->shift);
      cut->sums = sum<MassFrom::kKnownCut>(known, cut->shift, nullptr);
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
      cut->sums = sum<MassFrom::kKnownCut>(known, cut->shift, nullptr);
    }
    return true;
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
