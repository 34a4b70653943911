// A row: extremes, the cut, moments of each group, loss and gradient. Each is one pass over the
// row, if the first estimate of the cut is right, which is nearly always; every estimate is
// checked, and exact_cut() is the fallback, with the same result.
#include "cpu/kernels/estimate_range-inl.h"
#include "cpu/kernels/row_passes-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {

/// In shard.cpp and sparse.cpp.
ShardKernels shard_kernels(bool in_double);
SparseKernels sparse_kernels(bool in_double);

namespace {

template <class T>
struct WholeRow : RowPasses<T> {
  using Passes = RowPasses<T>;
  using Passes::executor, Passes::inv_t, Passes::row, Passes::scratch, Passes::task;
  using Passes::Passes, Passes::temperature;

  /// Of the masses: T_g.
  const T group_temperature =
      static_cast<T>(task.selection.temperature_or(task.weights.exponent_temperature()));

  /// The cut from the window, and the moments; false where the window does not hold the cut.
  bool try_window(const StopRule& stop, const LogitRange<T>& window, const MassRule<T>& rule,
                  CutResult<T>* cut) {
    if (!(window.high > window.low)) return false;
    guess_shifts(row, window.low, temperature, scratch->segments, cut->shift);
    RowSums sums;
    if (!stop.by_mass) {
      sums = this->template sum<MassFrom::kNothing>(window, cut->shift, nullptr);
    } else if (row.by_student || group_temperature != temperature) {
      sums = this->template sum<MassFrom::kRank>(window, cut->shift, &rule);
    } else {
      sums = this->template sum<MassFrom::kTeacherTerm>(window, cut->shift, &rule);
    }
    double weight[2];  // above and below the window
    for (int g = 0; g < 2; ++g) {
      weight[g] = stop.by_mass ? sums.mass[g] : static_cast<double>(sums.group[g].count);
    }
    std::vector<T> logits;
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      const LogitPairs<T>& found = undecided(k);
      const std::vector<T>& ranking = row.by_student ? found.s : found.u;
      logits.insert(logits.end(), ranking.begin(), ranking.end());
    }
    // The target was counted in the group wherever it ranks; selection ignores it.
    const T rank = row.target < 0 ? kInfinity<T> : read_one<T>(row.rank, row.target);
    if (rank < window.high) {
      const double own = stop.by_mass ? reduce_max(rule.weight(splat<VecOf<T>>(rank))) : 1;
      weight[0] -= own;
      if (rank < window.low) weight[1] += own;
      if (rank >= window.low) logits.push_back(rank);
    }
    if (!cut_in_window(stop, row.classes, rule, window, logits, weight, &cut->value)) return false;
    add_undecided(*cut, &sums);
    cut->sums = sums;
    return cut->has_sums = true;
  }

  LogitPairs<T>& undecided(std::int64_t segment) {
    return std::get<LogitPairs<T>>(scratch->segments[segment].undecided);
  }

  /// The moments of the window's classes, now that the cut is known.
  void add_undecided(const CutResult<T>& cut, RowSums* sums) {
    MomentsAccumulator<T, MassFrom::kKnownCut> moments{
        {cut.value, cut.value}, {cut.shift[0], cut.shift[1]}, inv_t};
    alignas(64) T unused[kTile];
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      LogitPairs<T>& found = undecided(k);
      const auto size = static_cast<std::int64_t>(found.s.size());
      for (std::vector<T>* v : {&found.s, &found.u}) v->resize(padded<T>(size), -kInfinity<T>);
      for (std::int64_t j = 0; j < size; j += kTile) {
        const Tile<T> s{&found.s[j]}, u{&found.u[j]};
        moments.add(s, u, row.by_student ? s : u, s, std::min(kTile, size - j), false, unused);
      }
    }
    sums->add(moments.result());
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
    for (bool sample : {true, false}) {
      if (sample && row.classes < 2 * kSample) continue;
      const LogitRange<T> window =
          estimate_range(row, stop, high, low, group_temperature, sample, executor, scratch);
      if (try_window(stop, window, rule, &cut)) return cut;
    }
    cut.value = exact_cut(row, stop, rule, scratch);
    return cut;
  }

  RowResult run() {
    if (!std::isfinite(task.margin)) return invalid_row();
    const Segment extremes = Passes::extremes();
    const T high = static_cast<T>(extremes.high);
    // NaN is detected later, in the sums.
    if (!std::isfinite(high) || !std::isfinite(extremes.teacher_high)) return invalid_row();
    const MassRule<T> rule(row.classes, high, T(1) / group_temperature);
    CutResult<T> cut = find_cut(high, static_cast<T>(extremes.low), rule);
    if (!Passes::accumulate_moments(&cut, /*whole=*/true)) return invalid_row();
    RowResult result;
    result.cut = cut.value + T(0);  // canonicalises -0.0 to +0.0
    result.size = cut.sums.group[0].count;
    HeadOfRow head{{}, cut.sums.others.high};
    if (this->with_cross_entropy) {
      head.cross_entropy =
          gkd::cross_entropy(cut.sums.others, Passes::target_logit(), task.weights.scale);
    }
    double kl[2];
    result.summary = Passes::write_gradient(cut.value, cut.sums.group, head, kl);
    result.primary = kl[0];
    result.secondary = kl[1];
    result.distillation = row_loss(result.summary, task.weights, kl[0], kl[1]);
    result.cross_entropy = head.cross_entropy.loss;
    result.loss = total_loss(task.weights, result.cross_entropy, result.distillation);
    return result;
  }

  RowResult invalid_row() {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    RowResult result;
    result.loss = result.distillation = nan;
    if (this->with_cross_entropy) result.cross_entropy = nan;
    result.primary = result.secondary = result.cut = nan;
    result.summary.p = result.summary.q = result.summary.binary = nan;
    fill_gradient(task.gradient, task.classes, static_cast<T>(nan));
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
  return {
      GKD_STRING(GKD_CPU_CAPABILITY),
      {&run_row<float>, sparse_kernels(/*in_double=*/false), shard_kernels(/*in_double=*/false)},
      {&run_row<double>, sparse_kernels(/*in_double=*/true), shard_kernels(/*in_double=*/true)},
      &scale_row};
}

}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
