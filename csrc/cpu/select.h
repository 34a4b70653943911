// Selection on the CPU without sorting the row: integer masses by bin give the crossing bin
// exactly; only that bin's classes are sorted. Returns the cut, the smallest ranking logit in the
// group.
//
// A template header, because row.cpp compiles it once per instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/row.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

constexpr int kBins = 2048;           // 0.01 nat each at C = 2M: a bin holds about 1% of a flat row
constexpr std::int64_t kBlock = 512;  // float sums run over this many terms, then go to double
constexpr int kLanes = 16;
template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

/// max, smallest finite value and whether a NaN or +inf is present.
template <class T>
struct Extremes {
  T high = -kInfinity<T>, low = kInfinity<T>;
  bool bad = false;
};

template <class T>
Extremes<T> extremes(const T* row, std::int64_t classes) {
  T high[kLanes], low[kLanes];
  int bad = 0;
  std::fill(high, high + kLanes, -kInfinity<T>);
  std::fill(low, low + kLanes, kInfinity<T>);
  const std::int64_t body = classes - classes % kLanes;
  for (std::int64_t j = 0; j < body; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const T v = row[j + k];
      high[k] = v > high[k] ? v : high[k];
      low[k] = v < low[k] && v > -kInfinity<T> ? v : low[k];
      bad |= !(v < kInfinity<T>);
    }
  }
  Extremes<T> e;
  for (int k = 0; k < kLanes; ++k) {
    e.high = std::max(e.high, high[k]);
    e.low = std::min(e.low, low[k]);
  }
  for (std::int64_t j = body; j < classes; ++j) {
    e.high = row[j] > e.high ? row[j] : e.high;
    e.low = row[j] < e.low && row[j] > -kInfinity<T> ? row[j] : e.low;
    bad |= !(row[j] < kInfinity<T>);
  }
  e.bad = bad != 0;
  return e;
}

/// The cut among `keys`, which weigh on top of `above` in descending order.
template <class T, class Measure, class Reached>
T resolve(std::vector<double>& keys, Measure measure_of, Reached reached, std::uint64_t above,
          std::uint64_t total) {
  std::sort(keys.begin(), keys.end(), std::greater<double>());
  for (double key : keys) {
    above += measure_of(static_cast<T>(key));
    if (reached(above, total)) return static_cast<T>(key);
  }
  // Rounding of threshold * total can leave the very last class short: the group is then all.
  return keys.empty() ? -kInfinity<T> : static_cast<T>(keys.back());
}

/// The largest value v with measure{r >= v} >= wanted, where `measure_of` is an integer per class
/// and `bin_of` does not increase with r: totals by bin, then the crossing bin's classes in order.
template <class T, class Measure, class Bin, class Reached>
T find_cut(const T* rank, std::int64_t classes, Measure measure_of, Bin bin_of, Reached reached,
           bool sort, Scratch* scratch) {
  std::vector<double>& keys = scratch->keys;
  keys.clear();
  std::uint64_t total = 0, above = 0;
  if (sort) {
    for (std::int64_t j = 0; j < classes; ++j) total += measure_of(rank[j]);
    keys.assign(rank, rank + classes);
    return resolve<T>(keys, measure_of, reached, above, total);
  }
  constexpr std::int64_t kChunk = 1024;
  std::int32_t bins[kChunk];
  std::uint64_t measures[kChunk];
  scratch->mass.assign(kBins, 0);
  std::uint64_t* totals = scratch->mass.data();
  for (std::int64_t begin = 0; begin < classes; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, classes - begin);
    for (std::int64_t k = 0; k < count; ++k) {
      bins[k] = bin_of(rank[begin + k]);
      measures[k] = measure_of(rank[begin + k]);
    }
    for (std::int64_t k = 0; k < count; ++k) totals[bins[k]] += measures[k];
  }
  for (int b = 0; b < kBins; ++b) total += totals[b];
  int crossing = 0;
  for (; crossing < kBins - 1; ++crossing) {
    if (reached(above + totals[crossing], total)) break;
    above += totals[crossing];
  }
  for (std::int64_t begin = 0; begin < classes; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, classes - begin);
    int any = 0;
    for (std::int64_t k = 0; k < count; ++k) {
      bins[k] = bin_of(rank[begin + k]);
      any |= bins[k] == crossing;
    }
    if (!any) continue;
    for (std::int64_t k = 0; k < count; ++k) {
      if (bins[k] == crossing) keys.push_back(static_cast<double>(rank[begin + k]));
    }
  }
  return resolve<T>(keys, measure_of, reached, above, total);
}

/// The smallest ranking logit in the group: +inf for the empty group.
template <class T>
T select(const T* rank, std::int64_t classes, const Selection& how, T inv_temperature, T high,
         T low, Scratch* scratch) {
  if (how.group_size == 0) return kInfinity<T>;
  if (how.group_size >= classes) return -kInfinity<T>;
  if (how.group_size < 0 && how.threshold == 1.0) return std::numeric_limits<T>::lowest();
  T reach;  // nats below the maximum that the bins resolve; the last bin takes all beyond
  if (how.group_size < 0) {
    // A class with p <= (1 - threshold)/C never closes a group: all such together weigh too little.
    reach = static_cast<T>(std::log(static_cast<double>(classes) / (1.0 - how.threshold)) + 0.01);
  } else {
    reach = (high - low) * inv_temperature;
    if (!(reach > T(0))) reach = T(1);  // all finite logits equal
    if (!(reach < kInfinity<T>)) reach = std::numeric_limits<T>::max();
  }
  const T per_nat = T(kBins - 1) / reach;
  auto bin_of = [=](T r) {
    const T place = (high - r) * inv_temperature * per_nat;
    return static_cast<std::int32_t>(place < T(kBins - 1) ? place : T(kBins - 1));
  };
  if (how.group_size < 0) {
    const T scale = static_cast<T>(mass_scale(classes));
    const double threshold = how.threshold;
    return find_cut(
        rank, classes, [=](T r) { return fixed_mass(exp_of((r - high) * inv_temperature), scale); },
        bin_of,
        [=](std::uint64_t m, std::uint64_t total) { return mass_reached(m, total, threshold); },
        how.sort, scratch);
  }
  const std::uint64_t wanted = static_cast<std::uint64_t>(how.group_size);
  return find_cut(
      rank, classes, [](T) { return std::uint64_t(1); }, bin_of,
      [=](std::uint64_t m, std::uint64_t) { return m >= wanted; }, how.sort, scratch);
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
