// A row: extremes, the cut, sums of each group, loss and gradient. Three reading sweeps and a count
// where the cut is bracketed at first try, which is nearly always; every shortcut is checked
// against exact sums, and the slow way round gives the same cut.
#ifndef GKD_CPU_CAPABILITY
#define GKD_CPU_CAPABILITY DEFAULT
#endif

#include "cpu/row.h"

#include "cpu/bracket.h"
#include "cpu/extremes.h"
#include "cpu/references.h"
#include "cpu/scale.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

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
  Sums sum(const Window<T>& window, const Reference<T> (&ref)[2], const MassRule<T>& rule) {
    each_segment([&](Segment& segment, std::int64_t begin, std::int64_t end) {
      Summer<T, kMass> summer{window, {ref[0], ref[1]}, inv_t, rule, task.how.by_student};
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

  /// The open classes' sums, once the cut is known; in the order of the classes.
  Sums sum_open(T cut, const Reference<T> (&ref)[2], const MassRule<T>& rule) {
    Summer<T, MassFrom::kNothing> summer{{cut, cut}, {ref[0], ref[1]}, inv_t, rule, false};
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
  bool try_window(const Goal& goal, const Bracket<T>& found, const MassRule<T>& rule, Cut<T>* cut) {
    const Window<T>& w = found.window;
    guess_references(row, w, task.how.by_student, temperature, scratch->segments, cut->ref);
    Sums sums;
    if (!goal.by_mass) {
      sums = sum<MassFrom::kNothing>(w, cut->ref, rule);
    } else if (task.how.by_student) {
      sums = sum<MassFrom::kRank>(w, cut->ref, rule);
    } else {
      sums = sum<MassFrom::kTeacherTerm>(w, cut->ref, rule);
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
      if (!goal.reached(above, total)) return false;
      if (goal.reached(above - tie * static_cast<std::uint64_t>(found.ties), total) &&
          found.ties > 0)
        return false;
    } else {
      for (std::int64_t k = 0; k < row.segments(); ++k) {
        for (std::uint32_t offset : scratch->segments[k].window)
          keys.push_back(read_one<T>(row.rank, k * kSegment + offset));
      }
      if (keys.empty() || goal.reached(above, total)) return false;
      if (!resolve(goal, rule, keys, above, total, &cut->value)) return false;
      sums.merge(sum_open(cut->value, cut->ref, rule));
    }
    cut->sums = sums;
    cut->summed = true;
    return true;
  }

  Cut<T> find_cut(T high, T low, const MassRule<T>& rule) {
    const Selection& how = task.how;
    Cut<T> cut;
    const bool by_mass = how.group_size < 0;
    if (how.group_size == 0) {
      cut.value = kInfinity<T>;
    } else if (how.group_size >= row.classes) {
      cut.value = -kInfinity<T>;
    } else if (by_mass && how.threshold == 1.0) {
      cut.value = std::numeric_limits<T>::lowest();
    } else {
      const Goal goal{by_mass, how.threshold,
                      static_cast<std::uint64_t>(std::max<std::int64_t>(how.group_size, 0))};
      if (how.sort) {
        cut.value = sorted_cut(row, goal, rule);
      } else {
        const Bracket<T> found =
            bracket(row, goal, high, low, task.weights.temperature, each, scratch);
        if (!found.found || !try_window(goal, found, rule, &cut)) {
          cut.value = exact_cut(row, goal, rule, scratch);
        }
      }
    }
    return cut;
  }

  RowResult run() {
    find_extremes(row, task.how.by_student, each, scratch->segments);
    T high = -kInfinity<T>, low = kInfinity<T>, teacher_high = -kInfinity<T>;
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      const Segment& segment = scratch->segments[k];
      high = std::max(high, static_cast<T>(segment.high));
      low = std::min(low, static_cast<T>(segment.low));
      teacher_high = std::max(teacher_high, static_cast<T>(segment.teacher_high));
    }
    // NaN passes for now: the sums show it.
    if (!std::isfinite(high) || !std::isfinite(teacher_high)) return not_a_number();
    const MassRule<T> rule(row.classes, high, inv_t);
    Cut<T> cut = find_cut(high, low, rule);
    const Window<T> known{cut.value, cut.value};
    if (!cut.summed) {
      guess_references(row, known, task.how.by_student, temperature, scratch->segments, cut.ref);
      cut.sums = sum<MassFrom::kNothing>(known, cut.ref, rule);
    }
    // A few classes average no rounding out: their exponents are taken from one of their own.
    const bool rest_has_kl = task.weights.secondary != 0;
    const bool borrowed = task.how.by_student && !(cut.ref[0].student >= cut.value);
    if (!usable(cut.sums, rest_has_kl) || (borrowed && cut.sums.count[0] <= kFewClasses) ||
        (rest_has_kl && cut.sums.count[1] <= kFewClasses)) {
      if (is_bad(row)) return not_a_number();
      find_references(row, cut.value, temperature, cut.ref);
      cut.sums = sum<MassFrom::kNothing>(known, cut.ref, rule);
    }
    return finish(cut);
  }

  RowResult finish(const Cut<T>& cut) {
    RowResult result;
    result.cut = cut.value;
    result.size = cut.sums.count[0];
    GroupMoments<double> moments[2];
    for (int g = 0; g < 2; ++g) {
      moments[g].ref = {cut.ref[g].teacher, cut.ref[g].student};
      moments[g].a = cut.sums.a[g];
      moments[g].b = cut.sums.b[g];
      moments[g].x = cut.sums.x[g];
      moments[g].count = cut.sums.count[g];
    }
    GroupCoef<T> coef[2];
    result.summary = finish_row(moments, task.weights, coef);
    const bool rest = coef[1].on_gap != T(0);
    if (task.gradient.data) {
      rest ? emit_all<true, true>(cut.value, coef) : emit_all<false, true>(cut.value, coef);
    } else {
      rest ? emit_all<true, false>(cut.value, coef) : emit_all<false, false>(cut.value, coef);
    }
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      result.primary += scratch->segments[k].kl[0];
      result.secondary += scratch->segments[k].kl[1];
    }
    result.loss = row_loss(result.summary, task.weights, result.primary, result.secondary);
    return result;
  }

  template <bool kRest, bool kGradient>
  void emit_all(T cut, const GroupCoef<T> (&coef)[2]) {
    const T scale = static_cast<T>(task.gradient_scale);
    each_segment([&](Segment& segment, std::int64_t begin, std::int64_t end) {
      emit<kRest, kGradient>(row, begin, end, cut, inv_t, coef, scale, task.gradient, segment.kl);
    });
  }

  RowResult not_a_number() {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    RowResult result;
    result.loss = result.primary = result.secondary = result.cut = nan;
    result.summary.p = result.summary.q = result.summary.binary = nan;
    if (task.gradient.data) {
      alignas(64) T block[kBlock];
      std::fill(block, block + kBlock, static_cast<T>(nan));
      for (std::int64_t j = 0; j < row.classes; j += kBlock)
        write(task.gradient, j, std::min(kBlock, row.classes - j), block);
    }
    return result;
  }
};

template <class T>
RowResult run_row(const RowTask& task, const Executor& each, Scratch* scratch) {
  return RowKernel<T>(task, each, scratch).run();
}

}  // namespace

Kernels kernels() { return {&run_row<float>, &run_row<double>, &scale_row}; }

}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
