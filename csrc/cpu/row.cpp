// A row: extremes, the cut, sums of each group, loss and gradient. Three reading sweeps and a count
// where the cut is bracketed at first try, which is nearly always; every shortcut is checked
// against exact sums, and the slow way round gives the same cut.
#include "cpu/row.h"

#include "cpu/estimate_range.h"
#include "cpu/row_kernel.h"
#include "cpu/scale.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

template <class T>
struct WholeRow : RowKernel<T> {
  using Kernel = RowKernel<T>;
  using Kernel::each, Kernel::inv_t, Kernel::row, Kernel::scratch, Kernel::task;
  using Kernel::Kernel, Kernel::temperature;

  /// The open classes' sums, once the cut is known; in the order of the classes.
  Sums sum_open(T cut, const Shift<T> (&shift)[2], const MassRule<T>& rule) {
    Summer<T, MassFrom::kNothing> summer{{cut, cut}, {shift[0], shift[1]}, inv_t, rule, false};
    alignas(64) T s[kBlock], u[kBlock], r[kBlock];
    std::int64_t held = 0;
    auto flush = [&] {
      for (T* block : {s, u, r}) std::fill(block + held, block + padded<T>(held), -kInfinity<T>);
      summer.add(Block<T>{s}, Block<T>{u}, Block<T>{r}, held, 0, nullptr);
      held = 0;
    };
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      for (std::uint32_t offset : scratch->segments[k].window) {
        const std::int64_t j = k * kSegment + offset;
        s[held] = read_one<T>(row.s, j);
        u[held] = read_one<T>(row.u, j);
        r[held] = task.how.by_student ? s[held] : u[held];
        if (++held == kBlock) flush();
      }
    }
    flush();
    return summer.result();
  }

  /// The cut by window and sums; false where the window missed it.
  bool try_window(const StopRule& goal, const RangeEstimate<T>& found, const MassRule<T>& rule,
                  Cut<T>* cut) {
    const LogitRange<T>& w = found.window;
    guess_shifts(row, w, task.how.by_student, temperature, scratch->segments, cut->shift);
    Sums sums;
    if (!goal.by_mass) {
      sums = this->template sum<MassFrom::kNothing>(w, cut->shift, rule);
    } else if (task.how.by_student) {
      sums = this->template sum<MassFrom::kRank>(w, cut->shift, rule);
    } else {
      sums = this->template sum<MassFrom::kTeacherTerm>(w, cut->shift, rule);
    }
    // The target was counted in wherever it stands; the search ignores it.
    std::uint64_t above = goal.by_mass ? sums.mass_in : static_cast<std::uint64_t>(sums.count[0]);
    std::vector<T> keys;
    if (row.target >= 0) {
      const T rank = read_one<T>(row.rank, row.target);
      if (rank < w.high) above -= goal.by_mass ? mass_of(rule, rank) : 1;
      if (rank < w.high && rank >= w.low) keys.push_back(rank);
    }
    const std::uint64_t total = sums.mass_total;
    if (w.low == w.high) {
      cut->value = w.low;
      const std::uint64_t tie = goal.by_mass ? mass_of(rule, w.low) : 1;
      if (!goal.is_met(above, total)) return false;
      if (goal.is_met(above - tie * static_cast<std::uint64_t>(found.ties), total) &&
          found.ties > 0)
        return false;
    } else {
      for (std::int64_t k = 0; k < row.segments(); ++k) {
        for (std::uint32_t offset : scratch->segments[k].window)
          keys.push_back(read_one<T>(row.rank, k * kSegment + offset));
      }
      if (keys.empty() || goal.is_met(above, total)) return false;
      if (!resolve(goal, rule, keys, above, total, &cut->value)) return false;
      sums.merge(sum_open(cut->value, cut->shift, rule));
    }
    cut->sums = sums;
    cut->summed = true;
    return true;
  }

  Cut<T> find_cut(T high, T low, const MassRule<T>& rule) {
    Cut<T> cut;
    if (const std::optional<T> constant = constant_cut<T>(task.how, row.classes)) {
      cut.value = *constant;
      return cut;
    }
    const StopRule goal = stop_rule(task.how);
    if (task.how.sort) {
      cut.value = sorted_cut(row, goal, rule);
      return cut;
    }
    const RangeEstimate<T> found =
        estimate_range(row, goal, high, low, task.weights.temperature, each, scratch);
    if (!found.found || !try_window(goal, found, rule, &cut)) {
      cut.value = exact_cut(row, goal, rule, scratch);
    }
    return cut;
  }

  RowResult run() {
    const Segment ends = Kernel::extremes();
    const T high = static_cast<T>(ends.high);
    // NaN passes for now: the sums show it.
    if (!std::isfinite(high) || !std::isfinite(ends.teacher_high)) return not_a_number();
    const MassRule<T> rule(row.classes, high, inv_t);
    Cut<T> cut = find_cut(high, static_cast<T>(ends.low), rule);
    if (!Kernel::accumulate_moments(&cut, rule, /*whole=*/true)) return not_a_number();
    RowResult result;
    result.cut = cut.value + T(0);  // of the two zeros one, whichever a sweep met first
    result.size = cut.sums.count[0];
    const auto moments = Kernel::moments_of(cut);
    double kl[2];
    result.summary = Kernel::write_gradient(cut.value, moments.data(), kl);
    result.primary = kl[0];
    result.secondary = kl[1];
    result.loss = row_loss(result.summary, task.weights, kl[0], kl[1]);
    return result;
  }

  RowResult not_a_number() {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    RowResult result;
    result.loss = result.primary = result.secondary = result.cut = nan;
    result.summary.p = result.summary.q = result.summary.binary = nan;
    Kernel::fill_gradient(static_cast<T>(nan));
    return result;
  }
};

template <class T>
RowResult run_row(const RowTask& task, const Executor& each, Scratch* scratch) {
  return WholeRow<T>(task, each, scratch).run();
}

}  // namespace

Kernels kernels() { return {&run_row<float>, &run_row<double>, &scale_row}; }

}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
