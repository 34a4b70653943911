// One row of a shard under selection: what every stage needs to know about the whole row, and the
// window of bins that must hold its cut.
//
// A template header, because shard.cpp compiles it once per instruction set.
#pragma once

#include "cpu/select.h"
#include "cpu/shard.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// The bins that must hold the cut.
struct BinRange {
  int first, last;
  bool holds(int bin) const { return bin >= first && bin <= last; }
};

/// What every stage of selection needs to know about the whole row.
template <class T>
struct ShardRow {
  const ShardTask& task;
  StopRule goal;
  T high, inv_t;
  Keys<T> keys;
  gkd::Bins<T> bins;
  MassRule<T> rule;

  ShardRow(const ShardTask& task, const long long* extremes)
      : task(task),
        goal(stop_rule(task.row.how)),
        high(high_from_message<T>(extremes)),
        inv_t(T(1) / static_cast<T>(task.row.weights.temperature)),
        keys(ranking().dtype),
        bins{high, inv_t,
             bin_reach(goal, task.all_classes, high, low_from_message<T>(extremes), inv_t)},
        rule(task.all_classes, high, inv_t) {}

  const LogitsRow& ranking() const {
    return task.row.how.by_student ? task.row.student : task.row.teacher;
  }
  /// visit(count, ranking logits, their bins) on every block.
  template <class Visit>
  void each_binned(Visit visit) const {
    each_of<T>(ranking(), 0, task.row.classes, [&](std::int64_t, std::int64_t count, const T* r) {
      int bin[kBlock];  // of whole packs: padding ranks -inf
      for (std::int64_t k = 0; k < padded<T>(count); ++k) bin[k] = bins.of(r[k]);
      visit(count, r, bin);
    });
  }
  BinRange window(const std::int32_t* counts) const;
  RadixSearch<T> search(const long long* wire) const {
    return wire == nullptr ? first_search(keys, high) : search_from_message<T>(wire);
  }
};

/// The first bin at whose end the goal can be met, and the first at whose end it must be.
template <class T>
BinRange ShardRow<T>::window(const std::int32_t* counts) const {
  // exp(-x) at the bins' edges; the product's rounding is far inside the bounds' slack.
  const double step = bins.weight(1);
  const auto each = [&](auto visit) {
    double edge = 1, upper = 0, lower = 0;
    std::int64_t count = 0;
    for (int b = 0; b < kBins - 1; ++b) {
      upper += counts[b] * edge * (1 + kBinTolerance);
      edge *= step;
      lower += counts[b] * edge * (1 - kBinTolerance);
      count += counts[b];
      visit(b, upper, lower, count);
    }
  };
  double all_upper = 0, all_lower = 0;
  std::int64_t all = 0;
  each([&](int, double upper, double lower, std::int64_t count) {
    all_upper = upper;
    all_lower = lower;
    all = count;
  });
  const double tail = static_cast<double>(task.all_classes - all) * bins.weight(kBins - 1);
  const double least = goal.threshold * all_lower;
  const double most = goal.threshold * (all_upper + tail * (1 + kBinTolerance));
  BinRange range{kBins - 1, kBins - 1};
  each([&](int b, double upper, double lower, std::int64_t count) {
    const bool enough = static_cast<std::uint64_t>(count) >= goal.target_count;
    const bool may = goal.by_mass ? upper >= least : enough;
    const bool must = goal.by_mass ? lower >= most : enough;
    if (may) range.first = std::min(range.first, b);
    if (must) range.last = std::min(range.last, b);
  });
  return range;
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
