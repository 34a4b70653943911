// A row: extremes, the cut, moments of each group, loss and gradient. Each is one pass over the
// row, if the first estimate of the cut is right, which is nearly always; every estimate is
// checked, and exact_cut() is the fallback, with the same result.
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

  /// One pass over the ranking logits: the weights of the classes above the window and of all, and
  /// each segment's list of those inside. Where these masses are the terms a_j of the moments too,
  /// the gradient's memory keeps them, which saves computing them twice.
  template <bool kByMass>
  WindowWeights weigh(const LogitRange<T>& window, const MassRule<T>& rule) {
    using V = VecOf<T>;
    const bool keep = kByMass && !row.by_student && group_temperature == temperature &&
                      task.gradient.data && task.gradient.dtype == kDtype<T>;
    Passes::for_each_segment([&](Segment& segment, std::int64_t begin, std::int64_t end) {
      auto& in_window = std::get<std::vector<T>>(segment.in_window);
      in_window.clear();
      ExactAccumulator<V> above, total;
      std::int64_t num_above = 0, j = begin;
      row.for_each_ranking_tile(begin, end, [&](std::int64_t count, auto r) {
        alignas(64) T found[kTile + kWidth<T>], buffer[kTile];
        T *next = found, *out = keep ? writable_tile(task.gradient, j, count, buffer) : buffer;
        const V high = splat<V>(window.high), low = splat<V>(window.low), zero{};
        const V top = splat<V>(rule.high);
        ExactAccumulator<V> tile_above = above, tile_total = total;  // in registers
        for (std::int64_t k = 0; k < count; k += kWidth<T>) {
          const V v = r[k];
          const MaskOf<V> over = v >= high;
          const unsigned over_bits = compare_bits(v, high);
          if (kByMass) {
            const V mass = exp_of_nonpositive(V((v - top) * rule.inv_temperature));
            store(mass, out + k);
            tile_total.add(mass);
            tile_above.add(over ? mass : zero);
          } else {
            num_above += __builtin_popcount(over_bits);
          }
          next = append_lanes(v, compare_bits(v, low) & ~over_bits, next);
        }
        above = tile_above;
        total = tile_total;
        in_window.insert(in_window.end(), found, next);
        if (keep) write_tile(task.gradient, j, count, out);
        j += count;
      });
      segment.weight_above = kByMass ? above.sum() : static_cast<double>(num_above);
      segment.weight_total = kByMass ? total.sum() : static_cast<double>(end - begin);
    });
    if (keep) Passes::kept_shift = rule.high;
    WindowWeights sum;
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      sum.above += scratch->segments[k].weight_above;
      sum.total += scratch->segments[k].weight_total;
    }
    return sum;
  }

  /// The cut from the window; false where the window does not hold it.
  bool try_window(const StopRule& stop, const LogitRange<T>& window, const MassRule<T>& rule,
                  T* cut) {
    if (!(window.high > window.low)) return false;
    const WindowWeights sum = stop.by_mass ? weigh<true>(window, rule) : weigh<false>(window, rule);
    const WeightBracket bracket(stop, row.classes, rule.scale, sum.total);
    std::vector<T> logits;
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      const auto& found = std::get<std::vector<T>>(scratch->segments[k].in_window);
      logits.insert(logits.end(), found.begin(), found.end());
    }
    logits.resize(padded<T>(static_cast<std::int64_t>(logits.size())), -kInfinity<T>);
    return cut_in_window(bracket, rule, window, logits, sum.above, cut);
  }

  T find_cut(T high, T low, const MassRule<T>& rule) {
    const CutSearch<T> search = cut_search<T>(task.selection, row.classes);
    T cut = search.constant.value_or(-kInfinity<T>);
    for (int k = 0; k < search.num_selections; ++k) {
      const T found = find_cut(stop_rule(search.selection[k]), high, low, rule);
      if ((k == 0 && !search.constant) || found > cut) cut = found;
    }
    return cut;
  }

  T find_cut(const StopRule& stop, T high, T low, const MassRule<T>& rule) {
    if (task.selection.sort) return sorted_cut(row, stop, rule);
    T cut;
    for (bool sample : {true, false}) {
      if (sample && row.classes < 2 * kSample) continue;
      if (try_window(
              stop,
              estimate_range(row, stop, high, low, group_temperature, sample, executor, scratch),
              rule, &cut)) {
        return cut;
      }
    }
    return exact_cut(row, stop, rule, scratch);
  }

  RowResult run() {
    const Segment extremes = Passes::extremes();
    const T high = static_cast<T>(extremes.high);
    // NaN is detected later, in the sums.
    if (!std::isfinite(high) || !std::isfinite(extremes.teacher_high)) return invalid_row();
    const MassRule<T> rule(row.classes, high, T(1) / group_temperature);
    const T cut = find_cut(high, static_cast<T>(extremes.low), rule);
    RowSums sums;
    if (!Passes::accumulate_moments(cut, /*whole=*/true, &sums)) return invalid_row();
    RowResult result;
    result.cut = cut + T(0);  // canonicalises -0.0 to +0.0
    result.size = sums.group[0].count;
    double kl[2];
    result.summary = Passes::write_gradient(cut, sums.group, kl);
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
