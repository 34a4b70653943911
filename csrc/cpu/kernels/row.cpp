// A row: extremes, the cut, moments of each group, loss and gradient. The row is read three times,
// and once more to count classes, when the first estimate of the cut is right, which is nearly
// always; every estimate is checked against exact sums, otherwise exact_cut() is the fallback, with
// the same result.
#include "cpu/kernels/estimate_range-inl.h"
#include "cpu/kernels/row_passes-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {

/// In shard.cpp.
ShardKernels shard_kernels(bool in_double);

namespace {

template <class T>
struct WholeRow : RowPasses<T> {
  using Passes = RowPasses<T>;
  using Passes::executor, Passes::inv_t, Passes::row, Passes::scratch, Passes::task;
  using Passes::Passes, Passes::temperature;

  /// Of the masses: T_g.
  const T group_temperature =
      static_cast<T>(task.selection.temperature_or(task.weights.temperature));

  /// In class order, for determinism.
  template <class Visit>
  void for_each_window_class(Visit visit) const {
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      for (std::uint32_t offset : scratch->segments[k].in_window) visit(k * kSegment + offset);
    }
  }

  /// Adds the window's classes, skipped in the first pass, now that the cut is known.
  void add_window_classes(T cut, const Shift<T> (&shift)[2], const MassRule<T>& rule,
                          RowSums* sums) {
    MomentsAccumulator<T, MassFrom::kNothing> moments{
        {cut, cut}, {shift[0], shift[1]}, inv_t, rule, false};
    alignas(64) T s[kTile], u[kTile], r[kTile];
    std::int64_t buffered = 0;
    auto flush = [&] {
      for (T* tile : {s, u, r}) {
        std::fill(tile + buffered, tile + padded<T>(buffered), -kInfinity<T>);
      }
      moments.add(Tile<T>{s}, Tile<T>{u}, Tile<T>{r}, buffered, 0, nullptr);
      buffered = 0;
    };
    for_each_window_class([&](std::int64_t j) {
      s[buffered] = read_one<T>(row.s, j);
      u[buffered] = read_one<T>(row.u, j);
      r[buffered] = row.by_student ? s[buffered] : u[buffered];
      if (++buffered == kTile) flush();
    });
    flush();
    sums->add(moments.result());
  }

  /// The cut from window and sums; false where the window does not hold it.
  bool try_window(const StopRule& stop, const RangeEstimate<T>& estimate, const MassRule<T>& rule,
                  CutResult<T>* cut) {
    const LogitRange<T>& window = estimate.window;
    guess_shifts(row, window.low, temperature, scratch->segments, cut->shift);
    RowSums sums;
    if (!stop.by_mass) {
      sums = this->template sum<MassFrom::kNothing>(window, cut->shift, rule);
    } else if (row.by_student || group_temperature != temperature) {
      sums = this->template sum<MassFrom::kRank>(window, cut->shift, rule);
    } else {
      sums = this->template sum<MassFrom::kTeacherTerm>(window, cut->shift, rule);
    }
    // The target was counted in the group wherever it ranks; selection ignores it.
    std::uint64_t above =
        stop.by_mass ? sums.mass_in : static_cast<std::uint64_t>(sums.group[0].count);
    std::vector<T> candidates;
    if (row.target >= 0) {
      const T rank = read_one<T>(row.rank, row.target);
      if (rank < window.high) above -= total_weight(stop, rule, &rank, 1);
      if (rank < window.high && rank >= window.low) candidates.push_back(rank);
    }
    const std::uint64_t total = sums.mass_total;
    if (window.low == window.high) {
      cut->value = window.low;
      const std::uint64_t tied =
          total_weight(stop, rule, &window.low, 1) * static_cast<std::uint64_t>(estimate.ties);
      if (!stop.is_met(above, total)) return false;
      if (estimate.ties > 0 && stop.is_met(above - tied, total)) return false;
    } else {
      for_each_window_class(
          [&](std::int64_t j) { candidates.push_back(read_one<T>(row.rank, j)); });
      if (candidates.empty() || stop.is_met(above, total)) return false;
      if (!cut_in_window(stop, rule, candidates, above, total, &cut->value)) return false;
      add_window_classes(cut->value, cut->shift, rule, &sums);
    }
    cut->sums = sums;
    cut->has_sums = true;
    return true;
  }

  CutResult<T> find_cut(T high, T low, const MassRule<T>& rule) {
    const CutSearch<T> search = cut_search<T>(task.selection, row.classes);
    CutResult<T> cut;
    if (search.constant) cut.value = *search.constant;
    for (int k = 0; k < search.num_selections; ++k) {
      const CutResult<T> found = find_cut(stop_rule(search.selection[k]), high, low, rule);
      if ((k == 0 && !search.constant) || found.value > cut.value) cut = found;
    }
    return cut;
  }

  CutResult<T> find_cut(const StopRule& stop, T high, T low, const MassRule<T>& rule) {
    CutResult<T> cut;
    if (task.selection.sort) {
      cut.value = sorted_cut(row, stop, rule);
      return cut;
    }
    const RangeEstimate<T> estimate =
        estimate_range(row, stop, high, low,
                       task.selection.temperature_or(task.weights.temperature), executor, scratch);
    if (!estimate.found || !try_window(stop, estimate, rule, &cut)) {
      cut.value = exact_cut(row, stop, rule, scratch);
    }
    return cut;
  }

  RowResult run() {
    const Segment extremes = Passes::extremes();
    const T high = static_cast<T>(extremes.high);
    // NaN is detected later, in the sums.
    if (!std::isfinite(high) || !std::isfinite(extremes.teacher_high)) return invalid_row();
    const MassRule<T> rule(row.classes, high, T(1) / group_temperature);
    CutResult<T> cut = find_cut(high, static_cast<T>(extremes.low), rule);
    if (!Passes::accumulate_moments(&cut, rule, /*whole=*/true)) return invalid_row();
    RowResult result;
    result.cut = cut.value + T(0);  // canonicalises -0.0 to +0.0
    result.size = cut.sums.group[0].count;
    double kl[2];
    result.summary = Passes::write_gradient(cut.value, cut.sums.group, kl);
    result.primary = kl[0];
    result.secondary = kl[1];
    result.loss = row_loss(result.summary, task.weights, kl[0], kl[1]);
    return result;
  }

  RowResult invalid_row() {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    RowResult result;
    result.loss = result.primary = result.secondary = result.cut = nan;
    result.summary.p = result.summary.q = result.summary.binary = nan;
    Passes::fill_gradient(static_cast<T>(nan));
    return result;
  }
};

template <class T>
RowResult run_row(const RowTask& task, const Executor& executor, Scratch* scratch) {
  return WholeRow<T>(task, executor, scratch).run();
}

template <class T>
void scale_as(const void* in, void* out, std::int64_t count, T factor) {
  const T* x = static_cast<const T*>(in);
  T* y = static_cast<T*>(out);
  for (std::int64_t j = 0; j < count; ++j) y[j] = x[j] * factor;
}

/// The multiplication in the backward, in at least float, rounded once.
void scale_row(const void* in, void* out, Dtype dtype, std::int64_t count, double factor) {
  if (dtype == Dtype::kDouble) return scale_as<double>(in, out, count, factor);
  const float float_factor = static_cast<float>(factor);
  if (dtype == Dtype::kFloat) return scale_as<float>(in, out, count, float_factor);
  for_each_u16_vector(count, [&](std::int64_t k, std::size_t bytes) {
    VecU16 v{};
    std::memcpy(&v, static_cast<const std::uint16_t*>(in) + k, bytes);
    v = from_float(to_float(v, dtype) * float_factor, dtype);
    std::memcpy(static_cast<std::uint16_t*>(out) + k, &v, bytes);
  });
}

#define GKD_STRING(x) GKD_STRING_OF(x)
#define GKD_STRING_OF(x) #x

}  // namespace

Kernels kernels() {
  return {GKD_STRING(GKD_CPU_CAPABILITY),
          {&run_row<float>, shard_kernels(/*in_double=*/false)},
          {&run_row<double>, shard_kernels(/*in_double=*/true)},
          &scale_row};
}

}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
