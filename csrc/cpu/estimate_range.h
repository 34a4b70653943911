// A window that very likely holds the cut, from counts of classes by logit.
//
// A template header, because row.cpp compiles it once per instruction set.
#pragma once

#include "cpu/select.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

inline constexpr int kMaxBins = 2048, kMinBins = 64;
/// Tables of counts that one row fills at once.
inline constexpr std::int64_t kTables = 8;

/// Evenly spaced bins downwards from `high`, centred on it: bin b holds (high - r) in
/// [b - 1/2, b + 1/2) widths.
template <class T>
struct BracketBins {
  T high, per_unit;
  int count;
  double width() const { return 1.0 / static_cast<double>(per_unit); }
};

/// Counts classes [begin, end) into counts[0, bins). What lies under the bins goes to one slot per
/// lane behind them, what lies above to bin 0: it is known to the caller already.
template <class T>
void count_bins(const Row<T>& row, std::int64_t begin, std::int64_t end, const BracketBins<T>& bins,
                std::int32_t* counts) {
  using V = VecOf<T>;
  VecI32 under;
  for (int l = 0; l < kFloats; ++l) under[l] = bins.count + l;
  row.each_rank_block(begin, end, [&](std::int64_t count, auto r) {
    // The slots of a whole block first: through memory they reach the counts sooner than lane by
    // lane.
    alignas(64) std::int32_t slots[kBlock];
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      const V place = (bins.high - r[k]) * bins.per_unit + T(0.5);
      if constexpr (std::is_same_v<T, float>) {
        // Written so that a NaN goes under the bins, and so that no float outside int is converted.
        const VecI32 in = place < float(bins.count);
        const V positive = place > V{} ? place : V{};
        const VecI32 slot = __builtin_convertvector(in ? positive : V{}, VecI32);
        const VecI32 chosen = in ? slot : under;
        std::memcpy(slots + k, &chosen, sizeof(chosen));
      } else {
        const T bounded = place < T(bins.count) ? place : T(bins.count);
        slots[k] = bounded > T(0) ? static_cast<int>(bounded) : 0;
      }
    }
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      for (int l = 0; l < kWidth<T>; ++l) ++counts[slots[k + l]];
    }
  });
}

/// What estimate_range() found.
template <class T>
struct RangeEstimate {
  LogitRange<T> window;
  bool found = false;
  std::int64_t ties = 0;  ///< > 0: the window is one logit, this many classes have it
};

/// What a window holds.
template <class T>
struct Contents {
  T high, low;
  std::int64_t within, above;
};

template <class T>
Contents<T> look_into(const Row<T>& row, const LogitRange<T>& w) {
  using V = VecOf<T>;
  std::int64_t within = 0, above = 0;
  V top = splat<V>(-kInfinity<T>), bottom = splat<V>(kInfinity<T>);
  row.each_rank_block(0, row.classes, [&](std::int64_t count, auto r) {
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      const V v = r[k];
      const MaskOf<V> over = v >= w.high, in = (v >= w.low) & (v < w.high);
      above += __builtin_popcount(movemask(over));
      within += __builtin_popcount(movemask(in));
      top = ((v > top) & in) ? v : top;
      bottom = ((v < bottom) & in) ? v : bottom;
    }
  });
  return {reduce_max(top), -reduce_max(V(-bottom)), within, above};
}

template <class T>
T next_up(T x) {
  return std::nextafter(x, kInfinity<T>);
}

/// `high` and `low`: the row's largest logit and its smallest finite one.
template <class T>
RangeEstimate<T> estimate_range(const Row<T>& row, const StopRule& goal, T high, T low,
                                double temperature, const Executor& each, Scratch* scratch) {
  const std::int64_t classes = row.classes;
  // A class with p <= (1 - threshold)/C never closes a group: all such together weigh too little.
  // Six nats more, and what is left out weighs under 1/400 of that.
  const double deepest = static_cast<double>(high) - static_cast<double>(low);
  double depth = deepest;
  if (goal.by_mass) {
    const double reach = std::log(static_cast<double>(classes) / (1 - goal.threshold)) + 6;
    depth = std::min(depth, reach * temperature);
  }
  int bin_count = kMinBins;
  while (bin_count < kMaxBins && bin_count < classes / 4) bin_count *= 2;
  // What the window may hold: the sums then list 1/32 of the row at most.
  const std::int64_t few = classes / 32 + 64;
  const std::int64_t tables = std::min(kTables, row.segments()), slots = bin_count + kFloats;
  const std::int64_t share = (row.segments() + tables - 1) / tables * kSegment;

  // Top of the current bins; masses above them, in all, and in doubt, in units of the maximum's.
  double top = high, above = 0, total = 0, slack = 0;
  std::uint64_t above_count = 0;
  RangeEstimate<T> result;
  for (int round = 0; round < 3; ++round) {
    const double width = depth / (bin_count - 1);
    const T per_unit = static_cast<T>(1 / width);
    if (!(width > 0) || !(per_unit < kInfinity<T>) || !(per_unit > T(0))) {
      if (deepest > 0) return result;
      result = {{high, high}, true, 0};  // every finite logit is the same
      return result;
    }
    const BracketBins<T> bins{static_cast<T>(top), per_unit, bin_count};
    std::vector<std::int32_t>& counts = scratch->counts;
    counts.assign(tables * slots, 0);
    each(tables, [&](std::int64_t k) {
      count_bins(row, std::min(classes, k * share), std::min(classes, (k + 1) * share), bins,
                 counts.data() + k * slots);
    });
    for (std::int64_t k = 1; k < tables; ++k) {
      for (int b = 0; b < bin_count; ++b) counts[b] += counts[k * slots + b];
    }
    // What ranks above the bins has been counted into the first.
    if (round > 0) counts[0] -= static_cast<std::int32_t>(above_count);

    // The window's first and last bin, by mass with an allowance for where classes lie in a bin.
    int first = bin_count - 1, last = bin_count - 1;
    std::uint64_t before_count = above_count;  // exact, unlike the mass
    double before = above;
    if (goal.by_mass) {
      const double nat = bins.width() / temperature, start = (high - top) / temperature;
      double variance = 0, sum = above;
      std::vector<float> mass(bin_count);
      for (int b = 0; b < bin_count; ++b) mass[b] = static_cast<float>(-(start + b * nat));
      for (int b = 0; b < bin_count; b += kFloats)
        store(exp_of(load<VecF32>(mass.data() + b)), mass.data() + b);
      for (int b = 0; b < bin_count; ++b) {
        const double one = mass[b], all = one * counts[b];
        sum += all;
        // The first bin's centre is the maximum itself.
        variance += one * one * (round == 0 && b == 0 ? counts[b] - 1 : counts[b]);
      }
      slack += nat * std::sqrt(variance);
      if (round == 0) {
        total = sum;
        slack += 1e-4 * (1 - goal.threshold) + 2e-6 * total;
      }
      const double wanted = goal.threshold * total;
      double upto = above;
      bool started = false;
      for (int b = 0; b < bin_count; ++b) {
        const double next = upto + static_cast<double>(mass[b]) * counts[b];
        if (!started && next >= wanted - slack) {
          first = b;
          before = upto;
          started = true;
        }
        upto = next;
        if (upto >= wanted + slack) {
          last = b;
          break;
        }
      }
    } else {
      for (int b = 0; b < bin_count; ++b) {
        if (before_count + counts[b] >= goal.target_count) {
          first = last = b;
          break;
        }
        before_count += counts[b];
      }
    }
    std::int64_t between = 0;
    for (int b = first; b <= last; ++b) between += counts[b];

    // Edges as logits, a little outside the bins: rounding may have moved a class across.
    const double slip = 1e-2 * width + 4 * std::numeric_limits<T>::epsilon() *
                                           std::max(std::abs(static_cast<double>(high)), depth);
    result.window.high = first == 0 && round == 0
                             ? next_up(high)
                             : static_cast<T>(top - (first - 0.5) * width + slip);
    result.window.low = static_cast<T>(top - (last + 0.5) * width - slip);
    result.window.low = std::max(result.window.low, std::numeric_limits<T>::lowest());
    if (between <= few) {
      result.found = true;
      return result;
    }
    const Contents<T> inner = look_into(row, result.window);
    if (!(inner.high > inner.low)) {
      if (inner.high == inner.low) result = {{inner.high, inner.high}, true, inner.within};
      return result;
    }
    // Finer bins over what the window holds.
    above = before;
    above_count = static_cast<std::uint64_t>(inner.above);
    top = inner.high;
    depth = static_cast<double>(inner.high) - static_cast<double>(inner.low);
  }
  return result;
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
