// One row of a shard under selection: what every stage needs to know about the whole row, and the
// bins that must hold its cut.
#pragma once

#include "cpu/kernels/select-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// The bins that must hold the cut.
struct BinRange {
  int first, last;
  bool holds(int bin) const { return bin >= first && bin <= last; }
};

template <class T>
struct ShardRow {
  const ShardTask& task;
  StopRule stop;
  T high, inv_t;
  Keys<T> keys;
  gkd::Bins<T> bins;
  MassRule<T> rule;

  ShardRow(const ShardTask& task, const long long* extremes)
      : task(task),
        stop(stop_rule(task.row.selection)),
        high(high_from_message<T>(extremes)),
        inv_t(T(1) /
              static_cast<T>(task.row.selection.temperature_or(task.row.weights.temperature))),
        keys(ranking().dtype),
        bins{high, inv_t,
             bin_reach(stop, task.all_classes, high, low_from_message<T>(extremes), inv_t)},
        rule(task.all_classes, high, inv_t) {}

  const LogitsRow& ranking() const {
    return task.row.selection.by_student ? task.row.student : task.row.teacher;
  }
  /// visit(count, ranking logits, their bins) on every tile.
  template <class Visit>
  void for_each_binned_tile(Visit visit) const {
    read_tiles<T>(ranking(), 0, task.row.classes,
                  [&](std::int64_t, std::int64_t count, const T* r) {
                    int bin[kTile];  // of whole vectors: the padding is -inf
                    for (std::int64_t k = 0; k < padded<T>(count); ++k) bin[k] = bins.of(r[k]);
                    visit(count, r, bin);
                  });
  }
  BinRange bin_range(const std::int32_t* counts) const;
  RadixSearch<T> search(const long long* message) const {
    return message == nullptr ? first_search(keys, high) : search_from_message<T>(message);
  }
};

/// The first bin at whose end the stop rule can be met, and the first at whose end it must be.
template <class T>
BinRange ShardRow<T>::bin_range(const std::int32_t* counts) const {
  // exp(-x) at the bins' edges; the rounding of the products is much less than the tolerance.
  const double step = bins.weight(1);
  const auto for_each_bin = [&](auto visit) {
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
  double total_upper = 0, total_lower = 0;
  std::int64_t total_count = 0;
  for_each_bin([&](int, double upper, double lower, std::int64_t count) {
    total_upper = upper;
    total_lower = lower;
    total_count = count;
  });
  const double tail = static_cast<double>(task.all_classes - total_count) * bins.weight(kBins - 1);
  const double least = stop.threshold * total_lower;
  const double most = stop.threshold * (total_upper + tail * (1 + kBinTolerance));
  BinRange range{kBins - 1, kBins - 1};
  for_each_bin([&](int b, double upper, double lower, std::int64_t count) {
    const bool enough = static_cast<std::uint64_t>(count) >= stop.target_count;
    const bool may = stop.by_mass ? upper >= least : enough;
    const bool must = stop.by_mass ? lower >= most : enough;
    if (may) range.first = std::min(range.first, b);
    if (must) range.last = std::min(range.last, b);
  });
  return range;
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
