// The cut of a row, the smallest ranking logit in its group, without sorting the row.
//
// - estimate_range() guesses a small window that holds the cut. The pass that sums the row weighs
//   both sides of it in double and lists the classes inside, among which cut_in_window() finds the
//   cut.
// - exact_cut() always succeeds: a radix search over ordered keys, three passes over a float row.
//   It is the fallback for rows whose window is too large or wrong, or whose sums in double leave
//   open which class is the cut.
// - sorted_cut() sorts. These two weigh classes by integers, and the first decides only where they
//   would decide alike, so all give the same cut.
#pragma once

#include <functional>

#include "cpu/kernels/sums-inl.h"
#include "math/radix_select.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// Where sums of masses in double decide as the integers of fixed_mass() do. For n classes, of
/// which the largest has the mass 1:
/// - a sum in double, in any order, is off by less than n 2^-53 of itself (ExactAccumulator);
/// - it exceeds the sum of the integers, in units of 1/scale, by less than n such units, since each
///   of those is truncated;
/// - taking off the target's mass, the sums of the search and is_met() round less than 64 times.
/// What is above the cut is a part of the total, so twice the total's error bounds the error of
/// `weight - threshold * total`. Counts are exact.
struct WeightBracket {
  const StopRule& stop;
  double total, error;

  WeightBracket(const StopRule& stop, std::int64_t classes, double scale, double total)
      : stop(stop), total(total), error(0) {
    const auto n = static_cast<double>(classes + 64);
    if (stop.by_mass) error = 2 * n * (1 / scale + 0x1p-53 * total);
  }
  /// What is missing at `weight`: surely none where it is <= -error, surely some where > error.
  double missing(double weight) const {
    return (stop.by_mass ? stop.threshold * total : static_cast<double>(stop.target_count)) -
           weight;
  }
  bool is_met(double weight) const { return missing(weight) <= -error; }
  bool is_not_met(double weight) const { return missing(weight) > error; }
};

/// The cut among a window's classes, in any order: the first in descending order at which the stop
/// rule is met. `outside`: the weights of the classes above the window and below. False where none
/// is met, or where the sums leave it open.
template <class T>
bool cut_in_window(const StopRule& stop, std::int64_t classes, const MassRule<T>& rule,
                   LogitRange<T> window, std::vector<T>& logits, const double (&outside)[2],
                   T* cut) {
  using V = VecOf<T>;
  auto size = static_cast<std::int64_t>(logits.size());
  logits.resize(padded<T>(size), -kInfinity<T>);
  std::vector<T> weights(logits.size(), T(1));
  ExactAccumulator<V> inside;
  for (std::int64_t k = 0; stop.by_mass && k < size; k += kWidth<T>) {
    const V weight = rule.weight(load<V>(&logits[k]));
    store(weight, &weights[k]);
    inside.add(weight);
  }
  double above = outside[0];
  const WeightBracket bracket(stop, classes, rule.scale, above + inside.sum() + outside[1]);
  // Halves the window until few classes are left, or only ties. Where logits differ by orders of
  // magnitude that takes too many steps.
  constexpr std::int64_t kFew = 16, kMany = 100000;
  T low = window.low, high = window.high;
  for (int step = 0; step < 40 && size > kFew && low < high; ++step) {
    const T middle = low / 2 + high / 2;
    const V split = splat<V>(middle > low ? middle : high);
    ExactAccumulator<V> sum;
    V least_upper = splat<V>(kInfinity<T>), most_lower = splat<V>(-kInfinity<T>);
    for (std::int64_t k = 0; k < size; k += kWidth<T>) {
      const V v = load<V>(&logits[k]);
      const MaskOf<V> upper = v >= split;
      sum.add(load<V>(&weights[k]), upper, compare_bits(v, split));
      least_upper = upper & (v < least_upper) ? v : least_upper;
      most_lower = (v < split) & (v > most_lower) ? v : most_lower;
    }
    const bool in_upper = bracket.missing(above + sum.sum()) <= 0;
    if (in_upper) {
      low = -reduce_max(V(-least_upper));
    } else {
      high = reduce_max(most_lower);
      above += sum.sum();
    }
    T *next = logits.data(), *next_weight = weights.data();
    for (std::int64_t k = 0; k < size; k += kWidth<T>) {
      const V v = load<V>(&logits[k]);
      const unsigned upper = compare_bits(v, split), bits = in_upper ? upper : ~upper & kAllTrue<V>;
      next = append_lanes(v, bits, next);
      next_weight = append_lanes(load<V>(&weights[k]), bits, next_weight);
    }
    size = next - logits.data();
    std::fill(next, logits.data() + padded<T>(size), -kInfinity<T>);
  }
  if (size > kMany) return false;
  if (low < high) std::sort(logits.data(), logits.data() + size, std::greater<T>());
  for (std::int64_t k = 0; k < size && logits[k] >= window.low; ++k) {
    const auto lane = k % kWidth<T>;
    if (stop.by_mass && lane == 0) store(rule.weight(load<V>(&logits[k])), weights.data());
    const double before = above;
    above += static_cast<double>(weights[lane]);
    if (bracket.missing(above) > 0) continue;
    *cut = logits[k];
    return bracket.is_not_met(before) && bracket.is_met(above);
  }
  return false;
}

template <class T>
T sorted_cut(const Row<T>& row, const StopRule& stop, const MassRule<T>& rule) {
  std::vector<T> logits;
  logits.reserve(row.classes);
  read_tiles<T>(row.rank, 0, row.classes,
                [&](std::int64_t count, const T* r) { logits.insert(logits.end(), r, r + count); });
  const std::uint64_t total = total_weight(stop, rule, logits.data(), row.classes);
  std::sort(logits.begin(), logits.end(), std::greater<T>());
  std::uint64_t weights[kTile], above = 0;
  for (std::int64_t j = 0; j < row.classes; ++j) {
    const std::int64_t k = j % kTile;
    if (k == 0) {
      class_weights(stop, rule, &logits[j], std::min(kTile, row.classes - j), weights);
    }
    above += weights[k];
    if (stop.is_met(above, total)) return logits[j];
  }
  return logits.back();
}

/// One radix pass: the weights of the keys that the search holds, by bin, highest first.
template <class T>
struct KeyHistogram {
  const RadixSearch<T>& search;
  const Keys<T>& keys;
  long long* bins;
  const int shift = search.bin_bits();

  /// Adds a tile's logits; returns their weight.
  std::uint64_t add(const StopRule& stop, const MassRule<T>& rule, const T* logits,
                    std::int64_t count) const {
    std::uint64_t weights[kTile], total = 0;
    class_weights(stop, rule, logits, count, weights);
    KeyOf<T> key[kTile];
    for (std::int64_t k = 0; k < count; ++k) key[k] = keys.of(logits[k]);  // vectorised
    for (std::int64_t k = 0; k < count; ++k) {
      total += weights[k];
      if (search.holds(key[k])) {
        bins[search.bin(key[k], shift)] += static_cast<long long>(weights[k]);
      }
    }
    return total;
  }
};

/// Copies those of a tile's logits that the search may hold to `out`, which has room for a tile;
/// returns their number.
template <class T>
std::int64_t candidates_of(const RadixSearch<T>& search, const Keys<T>& keys, const T* logits,
                           std::int64_t count, T* out) {
  using V = VecOf<T>;
  // The lowest key may be that of a NaN, which bounds nothing: only -inf lies beyond it. No library
  // function: see README.md.
  const T lowest = keys.logit(search.low);
  // NOLINTNEXTLINE(misc-redundant-expression): false for a NaN
  const V first = splat<V>(lowest == lowest ? lowest : -kInfinity<T>);
  const V last = splat<V>(keys.logit(search.high));
  T* end = out;
  for (std::int64_t k = 0; k < count; k += kWidth<T>) {
    const V v = load<V>(logits + k);
    unsigned bits = movemask((v >= first) & (v <= last));
    if (count - k < kWidth<T>) bits &= (1u << (count - k)) - 1;  // no padding
    end = append_lanes(v, bits, end);
  }
  return end - out;
}

/// The search inside the first bin at which the stop rule is met; the last one where it is not met.
template <class T>
RadixSearch<T> refine(const RadixSearch<T>& search, const StopRule& stop, const long long* bins) {
  const int shift = search.bin_bits(), last = search.bin(search.low, shift);
  unsigned long long over = 0;
  int bin = 0;
  for (; bin < last; ++bin) {
    const auto weight = static_cast<unsigned long long>(bins[bin]);
    if (stop.is_met(search.above + over + weight, search.total)) break;
    over += weight;
  }
  return search.refined(bin, shift, over);
}

/// The first pass weighs every class, later ones those that the search holds.
template <class T>
T exact_cut(const Row<T>& row, const StopRule& stop, const MassRule<T>& rule, Scratch* scratch) {
  const Keys<T> keys(values_dtype<T>(row.rank));
  RadixSearch<T> search = first_search(keys, rule.high);
  for (bool first = true; !search.found(); first = false) {
    scratch->histogram.assign(kBins, 0);
    const KeyHistogram<T> histogram{search, keys, scratch->histogram.data()};
    std::uint64_t weight = 0;
    read_tiles<T>(row.rank, 0, row.classes, [&](std::int64_t count, const T* r) {
      alignas(64) T candidates[kTile];
      if (!first) {
        count = candidates_of(search, keys, r, count, candidates);
        r = candidates;
      }
      weight += histogram.add(stop, rule, r, count);
    });
    if (first) search.total = weight;
    search = refine(search, stop, scratch->histogram.data());
  }
  return keys.logit(search.high);
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
