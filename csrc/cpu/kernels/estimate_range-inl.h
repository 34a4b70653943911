// A window that very likely holds the cut, from counts of classes by logit.
#pragma once

#include "cpu/kernels/select-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

inline constexpr int kMaxBins = 2048, kMinBins = 64;
/// Tables of counts that one row fills in parallel.
inline constexpr std::int64_t kTables = 8;

/// Evenly spaced bins downwards from `high`, centred on it: bin b holds the classes whose (high -
/// r) is in [b - 1/2, b + 1/2) widths. Unlike gkd::Bins these span the row's own range of logits.
template <class T>
struct CentredBins {
  T high, per_unit;
  int count;
  double width() const { return 1.0 / static_cast<double>(per_unit); }
};

/// Counts the row's classes into scratch->counts[0, bins.count). Classes under the bins go to one
/// slot per lane behind them; classes above go to bin 0, since the caller knows their number.
template <class T>
void count_row(const Row<T>& row, const CentredBins<T>& bins, const Executor& executor,
               Scratch* scratch) {
  const std::int64_t tables = std::min(kTables, row.segments()), table_size = bins.count + kFloats;
  const std::int64_t table_classes = (row.segments() + tables - 1) / tables * kSegment;
  scratch->counts.assign(tables * table_size, 0);
  executor(tables, [&](std::int64_t table) {
    std::int32_t* counts = scratch->counts.data() + table * table_size;
    const std::int64_t begin = std::min(row.classes, table * table_classes);
    const std::int64_t end = std::min(row.classes, begin + table_classes);
    VecI32 under;
    for (int l = 0; l < kFloats; ++l) under[l] = bins.count + l;
    row.for_each_ranking_tile(begin, end, [&](std::int64_t count, auto r) {
      // First the slots of a whole tile: through memory they reach the counts sooner than lane by
      // lane.
      alignas(64) std::int32_t slots[kTile];
      for (std::int64_t k = 0; k < count; k += kWidth<T>) {
        const VecOf<T> position = (bins.high - r[k]) * bins.per_unit + T(0.5);
        if constexpr (std::is_same_v<T, float>) {
          // So written that a NaN goes under the bins, and no float outside int is converted.
          const VecI32 in = position < float(bins.count);
          const VecF32 bounded = in & (position > VecF32{}) ? position : VecF32{};
          store(in ? __builtin_convertvector(bounded, VecI32) : under, slots + k);
        } else {
          const T bounded = position < T(bins.count) ? position : T(bins.count);
          slots[k] = bounded > T(0) ? static_cast<int>(bounded) : 0;
        }
      }
      for (std::int64_t k = 0; k < count; k += kWidth<T>) {
        for (int l = 0; l < kWidth<T>; ++l) ++counts[slots[k + l]];
      }
    });
  });
  std::int32_t* sum = scratch->counts.data();
  for (std::int64_t k = 1; k < tables; ++k) {
    for (int b = 0; b < bins.count; ++b) sum[b] += sum[k * table_size + b];
  }
}

/// The result of estimate_range().
template <class T>
struct RangeEstimate {
  LogitRange<T> window;
  bool found = false;
  std::int64_t ties = 0;  ///< > 0: the window is one logit, and this many classes have it
};

/// Extremes and number of the classes in a window, and the number of classes above it.
template <class T>
struct WindowStats {
  T high, low;
  std::int64_t inside, above;
};

template <class T>
WindowStats<T> window_stats(const Row<T>& row, const LogitRange<T>& window) {
  using V = VecOf<T>;
  std::int64_t inside = 0, above = 0;
  V top = splat<V>(-kInfinity<T>), bottom = splat<V>(kInfinity<T>);
  row.for_each_ranking_tile(0, row.classes, [&](std::int64_t count, auto r) {
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      const V v = r[k];
      const MaskOf<V> over = v >= window.high, in = (v >= window.low) & (v < window.high);
      above += __builtin_popcount(movemask(over));
      inside += __builtin_popcount(movemask(in));
      top = ((v > top) & in) ? v : top;
      bottom = ((v < bottom) & in) ? v : bottom;
    }
  });
  return {reduce_max(top), -reduce_max(V(-bottom)), inside, above};
}

/// The bins that hold the cut, and the weight above the first.
struct BinEstimate {
  int first, last;
  double above;
};

/// From the first bin at whose end the weight is `least` to the first at whose end it is `most`.
inline BinEstimate bins_between(double least, double most, double above,
                                const std::vector<float>& class_weight,
                                const std::int32_t* counts) {
  const int count = static_cast<int>(class_weight.size());
  BinEstimate result{-1, count - 1, above};
  for (int b = 0; b < count; ++b) {
    const double next = above + static_cast<double>(class_weight[b]) * counts[b];
    if (result.first < 0 && next >= least) result = {b, count - 1, above};
    above = next;
    if (above >= most) {
      result.last = b;
      break;
    }
  }
  if (result.first < 0) result.first = count - 1;
  return result;
}

/// Adds the mass of the bins and its uncertainty, which depends on where classes lie in a bin.
struct BinMasses {
  double total = 0, error = 0;

  /// `nat`: the bins' width, `start`: how far the first bin's centre lies under the row's largest
  /// logit, which is itself that centre in the first round; both in nats. Masses are in units of
  /// the largest class's.
  BinEstimate estimate(const StopRule& stop, double start, double nat, double above, int bins,
                       const std::int32_t* counts, bool first_round) {
    std::vector<float> mass(bins);
    for (int b = 0; b < bins; ++b) mass[b] = static_cast<float>(-(start + b * nat));
    for (int b = 0; b < bins; b += kFloats) {
      store(exp_of(load<VecF32>(mass.data() + b)), mass.data() + b);
    }
    double variance = 0, sum = above;
    for (int b = 0; b < bins; ++b) {
      const double class_mass = mass[b], bin_mass = class_mass * counts[b];
      sum += bin_mass;
      variance += class_mass * class_mass * (first_round && b == 0 ? counts[b] - 1 : counts[b]);
    }
    error += nat * std::sqrt(variance);
    if (first_round) {
      total = sum;
      error += 1e-4 * (1 - stop.threshold) + 2e-6 * total;
    }
    const double target = stop.threshold * total;
    return bins_between(target - error, target + error, above, mass, counts);
  }
};

/// `high` and `low`: the row's largest logit and its smallest finite one.
template <class T>
RangeEstimate<T> estimate_range(const Row<T>& row, const StopRule& stop, T high, T low,
                                double temperature, const Executor& executor, Scratch* scratch) {
  const std::int64_t classes = row.classes;
  // Classes with p <= (1 - threshold)/C cannot be the cut: all of them together weigh too little.
  // With six nats more, what is left out weighs less than 1/400 of that.
  const double span = static_cast<double>(high) - static_cast<double>(low);
  double depth = span;
  if (stop.by_mass) {
    const double reach = std::log(static_cast<double>(classes) / (1 - stop.threshold)) + 6;
    depth = std::min(depth, reach * temperature);
  }
  int bin_count = kMinBins;
  while (bin_count < kMaxBins && bin_count < classes / 4) bin_count *= 2;
  // Classes that a window may hold: the sums then list at most 1/32 of the row.
  const std::int64_t max_window = classes / 32 + 64;

  double top = high, mass_above = 0;
  std::uint64_t count_above = 0;  // exact, unlike the mass
  BinMasses masses;
  RangeEstimate<T> result;
  for (int round = 0; round < 3; ++round) {
    const double width = depth / (bin_count - 1);
    const T per_unit = static_cast<T>(1 / width);
    if (!(width > 0) || !(per_unit < kInfinity<T>) || !(per_unit > T(0))) {
      if (span > 0) return result;
      return {{high, high}, true, 0};  // all finite logits are equal
    }
    const CentredBins<T> bins{static_cast<T>(top), per_unit, bin_count};
    count_row(row, bins, executor, scratch);
    std::int32_t* counts = scratch->counts.data();
    // Classes above the bins were counted into the first.
    if (round > 0) counts[0] -= static_cast<std::int32_t>(count_above);
    BinEstimate estimate;
    if (stop.by_mass) {
      estimate = masses.estimate(stop, (high - top) / temperature, bins.width() / temperature,
                                 mass_above, bin_count, counts, /*first_round=*/round == 0);
    } else {
      const auto size = static_cast<double>(stop.target_count);
      estimate = bins_between(size, size, static_cast<double>(count_above),
                              std::vector<float>(bin_count, 1), counts);
    }
    std::int64_t undecided = 0;
    for (int b = estimate.first; b <= estimate.last; ++b) undecided += counts[b];

    // The window is a little larger than the bins: rounding may have moved a class across an edge.
    const double edge_margin =
        1e-2 * width + 4 * std::numeric_limits<T>::epsilon() *
                           std::max(std::abs(static_cast<double>(high)), depth);
    result.window.high = estimate.first == 0 && round == 0
                             ? std::nextafter(high, kInfinity<T>)
                             : static_cast<T>(top - (estimate.first - 0.5) * width + edge_margin);
    result.window.low = std::max(static_cast<T>(top - (estimate.last + 0.5) * width - edge_margin),
                                 std::numeric_limits<T>::lowest());
    if (undecided <= max_window) {
      result.found = true;
      return result;
    }
    const WindowStats<T> stats = window_stats(row, result.window);
    if (!(stats.high > stats.low)) {
      if (stats.high == stats.low) result = {{stats.high, stats.high}, true, stats.inside};
      return result;
    }
    // The next round has finer bins, over the window only.
    mass_above = estimate.above;
    count_above = static_cast<std::uint64_t>(stats.above);
    top = stats.high;
    depth = static_cast<double>(stats.high) - static_cast<double>(stats.low);
  }
  return result;
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
