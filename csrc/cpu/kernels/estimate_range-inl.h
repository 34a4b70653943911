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

/// Counts classes [begin, end) into counts[0, bins). Classes under the bins go to one slot per lane
/// behind them; classes above go to bin 0, since the caller knows their number.
template <class T>
void count_bins(const Row<T>& row, std::int64_t begin, std::int64_t end, const CentredBins<T>& bins,
                std::int32_t* counts) {
  using V = VecOf<T>;
  VecI32 under;
  for (int l = 0; l < kFloats; ++l) under[l] = bins.count + l;
  row.for_each_ranking_tile(begin, end, [&](std::int64_t count, auto r) {
    // First the slots of a whole tile: through memory they reach the counts sooner than lane by
    // lane.
    alignas(64) std::int32_t slots[kTile];
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      const V position = (bins.high - r[k]) * bins.per_unit + T(0.5);
      if constexpr (std::is_same_v<T, float>) {
        // So written that a NaN goes under the bins, and no float outside int is converted.
        const VecI32 in = position < float(bins.count);
        const V positive = position > V{} ? position : V{};
        const VecI32 slot = __builtin_convertvector(in ? positive : V{}, VecI32);
        const VecI32 chosen = in ? slot : under;
        std::memcpy(slots + k, &chosen, sizeof(chosen));
      } else {
        const T bounded = position < T(bins.count) ? position : T(bins.count);
        slots[k] = bounded > T(0) ? static_cast<int>(bounded) : 0;
      }
    }
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      for (int l = 0; l < kWidth<T>; ++l) ++counts[slots[k + l]];
    }
  });
}

/// Fills scratch->counts with the row's counts.
template <class T>
void count_row(const Row<T>& row, const CentredBins<T>& bins, const Executor& executor,
               Scratch* scratch) {
  const std::int64_t tables = std::min(kTables, row.segments()), slots = bins.count + kFloats;
  const std::int64_t table_classes = (row.segments() + tables - 1) / tables * kSegment;
  std::vector<std::int32_t>& counts = scratch->counts;
  counts.assign(tables * slots, 0);
  executor(tables, [&](std::int64_t k) {
    count_bins(row, std::min(row.classes, k * table_classes),
               std::min(row.classes, (k + 1) * table_classes), bins, counts.data() + k * slots);
  });
  for (std::int64_t k = 1; k < tables; ++k) {
    for (int b = 0; b < bins.count; ++b) counts[b] += counts[k * slots + b];
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

/// The bins that hold the cut, and the mass above the first, in units of the largest class's.
struct BinEstimate {
  int first, last;
  double mass_above;
};

/// Adds the mass of the bins and its uncertainty, which depends on where classes lie in a bin.
struct BinMasses {
  double total = 0, error = 0;

  /// `top` is the logit of the first bin's centre; in the first round it is the row's largest.
  template <class T>
  BinEstimate estimate(const StopRule& stop, const CentredBins<T>& bins, double high, double top,
                       double temperature, double above, const std::int32_t* counts,
                       bool first_round) {
    const double nat = bins.width() / temperature, start = (high - top) / temperature;
    double variance = 0, sum = above;
    std::vector<float> mass(bins.count);
    for (int b = 0; b < bins.count; ++b) mass[b] = static_cast<float>(-(start + b * nat));
    for (int b = 0; b < bins.count; b += kFloats) {
      store(exp_of(load<VecF32>(mass.data() + b)), mass.data() + b);
    }
    for (int b = 0; b < bins.count; ++b) {
      const double class_mass = mass[b], bin_mass = class_mass * counts[b];
      sum += bin_mass;
      // In the first round the row's largest logit is exactly the centre of its bin.
      variance += class_mass * class_mass * (first_round && b == 0 ? counts[b] - 1 : counts[b]);
    }
    error += nat * std::sqrt(variance);
    if (first_round) {
      total = sum;
      error += 1e-4 * (1 - stop.threshold) + 2e-6 * total;
    }
    const double target = stop.threshold * total;
    BinEstimate result{bins.count - 1, bins.count - 1, above};
    double cumulative = above;
    bool started = false;
    for (int b = 0; b < bins.count; ++b) {
      const double next = cumulative + static_cast<double>(mass[b]) * counts[b];
      if (!started && next >= target - error) {
        result.first = b;
        result.mass_above = cumulative;
        started = true;
      }
      cumulative = next;
      if (cumulative >= target + error) {
        result.last = b;
        break;
      }
    }
    return result;
  }
};

/// The bin of the class that completes a group by size.
inline BinEstimate bin_by_count(const StopRule& stop, int bins, std::uint64_t above,
                                const std::int32_t* counts) {
  for (int b = 0; b < bins; ++b) {
    if (above + counts[b] >= stop.target_count) return {b, b, 0};
    above += counts[b];
  }
  return {bins - 1, bins - 1, 0};
}

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
      result = {{high, high}, true, 0};  // all finite logits are equal
      return result;
    }
    const CentredBins<T> bins{static_cast<T>(top), per_unit, bin_count};
    count_row(row, bins, executor, scratch);
    std::int32_t* counts = scratch->counts.data();
    // Classes above the bins were counted into the first.
    if (round > 0) counts[0] -= static_cast<std::int32_t>(count_above);
    const BinEstimate estimate =
        stop.by_mass ? masses.estimate(stop, bins, high, top, temperature, mass_above, counts,
                                       /*first_round=*/round == 0)
                     : bin_by_count(stop, bin_count, count_above, counts);
    std::int64_t undecided = 0;
    for (int b = estimate.first; b <= estimate.last; ++b) undecided += counts[b];

    // The window is a little larger than the bins: rounding may have moved a class across an edge.
    const double edge_margin =
        1e-2 * width + 4 * std::numeric_limits<T>::epsilon() *
                           std::max(std::abs(static_cast<double>(high)), depth);
    result.window.high = estimate.first == 0 && round == 0
                             ? std::nextafter(high, kInfinity<T>)
                             : static_cast<T>(top - (estimate.first - 0.5) * width + edge_margin);
    result.window.low = static_cast<T>(top - (estimate.last + 0.5) * width - edge_margin);
    result.window.low = std::max(result.window.low, std::numeric_limits<T>::lowest());
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
    mass_above = estimate.mass_above;
    count_above = static_cast<std::uint64_t>(stats.above);
    top = stats.high;
    depth = static_cast<double>(stats.high) - static_cast<double>(stats.low);
  }
  return result;
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
