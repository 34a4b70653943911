// The stages of a shard's row, for one instruction set. Selection by the bins and keys of math/,
// sums and gradient by the sweeps of an unsharded row.
#include "cpu/shard.h"

#include "cpu/row_kernel.h"
#include "cpu/select.h"

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
  Goal goal;
  T high, inv_t;
  Keys<T> keys;
  gkd::Bins<T> bins;
  MassRule<T> rule;

  ShardRow(const ShardTask& task, const long long* extremes)
      : task(task),
        goal{task.row.how.group_size < 0, task.row.how.threshold,
             static_cast<std::uint64_t>(task.row.how.group_size)},
        high(high_from_wire<T>(extremes)),
        inv_t(T(1) / static_cast<T>(task.row.weights.temperature)),
        keys(ranking().dtype),
        bins{high, inv_t,
             bin_reach(goal, task.all_classes, high, low_from_wire<T>(extremes), inv_t)},
        rule(task.all_classes, high, inv_t) {}

  const Source& ranking() const {
    return task.row.how.by_student ? task.row.student : task.row.teacher;
  }
  /// visit(count, ranking logits, their bins) on every block.
  template <class Visit>
  void each_binned(Visit visit) const {
    each_of<T>(ranking(), 0, task.row.classes, [&](std::int64_t, std::int64_t count, const T* r) {
      int bin[kBlock];
      for (std::int64_t k = 0; k < count; ++k) bin[k] = bins.of(r[k]);
      visit(count, r, bin);
    });
  }
  BinRange window(const std::int32_t* counts) const;
  Search<T> search(const long long* wire) const {
    return wire == nullptr ? first_search(keys, high) : search_from_wire<T>(wire);
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
      upper += counts[b] * edge * (1 + kBinSlack);
      edge *= step;
      lower += counts[b] * edge * (1 - kBinSlack);
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
  const double most = goal.threshold * (all_upper + tail * (1 + kBinSlack));
  BinRange range{kBins - 1, kBins - 1};
  each([&](int b, double upper, double lower, std::int64_t count) {
    const bool enough = static_cast<std::uint64_t>(count) >= goal.wanted;
    const bool may = goal.by_mass ? upper >= least : enough;
    const bool must = goal.by_mass ? lower >= most : enough;
    if (may) range.first = std::min(range.first, b);
    if (must) range.last = std::min(range.last, b);
  });
  return range;
}

template <class T>
void find_shard_extremes(const ShardTask& task, const Executor& each, Scratch* scratch,
                         long long* extremes) {
  T high = -kInfinity<T>, low = kInfinity<T>;
  if (task.row.classes > 0) {
    const Segment ends = RowKernel<T>(task.row, each, scratch).extremes();
    high = static_cast<T>(ends.high);
    low = static_cast<T>(ends.low);
  }
  extremes_to_wire(high, low, extremes);
}

template <class T>
void count_shard(const ShardTask& task, const long long* extremes, std::int32_t* counts) {
  std::fill(counts, counts + kBins, 0);
  ShardRow<T>(task, extremes).each_binned([&](std::int64_t count, const T*, const int* bin) {
    for (std::int64_t k = 0; k < count; ++k) ++counts[bin[k]];
  });
  counts[kBins - 1] = 0;  // the tail is what remains of all classes
}

template <class T>
void spread_shard(const ShardTask& task, const long long* extremes, const std::int32_t* counts,
                  const long long* wire, long long* amounts) {
  const ShardRow<T> row(task, extremes);
  const BinRange window = row.window(counts);
  const Search<T> search = row.search(wire);
  const int shift = search.shift();
  std::fill(amounts, amounts + kWireAmounts, 0);
  // A key that is no number's bounds nothing: only -inf lies beyond it.
  const T lowest = row.keys.logit(search.low), highest = row.keys.logit(search.high);
  const T from = lowest == lowest ? lowest : -kInfinity<T>;
  row.each_binned([&](std::int64_t count, const T* r, const int* bin) {
    alignas(64) T kept[kBlock];
    std::uint64_t part[kBlock];
    std::int64_t n = 0;
    if (wire == nullptr) {  // the total and what is above need every class
      amounts_of(row.goal, row.rule, r, count, part);
      for (std::int64_t k = 0; k < count; ++k) {
        amounts[kWireTotal] += part[k];
        amounts[kWireAbove] += bin[k] < window.first ? part[k] : 0;
      }
    }
    for (std::int64_t k = 0; k < count; ++k) {
      kept[n] = r[k];
      n += window.holds(bin[k]) && r[k] >= from && r[k] <= highest;
    }
    std::fill(kept + n, kept + padded<T>(n), -kInfinity<T>);
    amounts_of(row.goal, row.rule, kept, n, part);
    for (std::int64_t k = 0; k < n; ++k) {
      const KeyOf<T> key = row.keys.of(kept[k]);
      if (search.holds(key)) amounts[search.bin(key, shift)] += part[k];
    }
  });
}

template <class T>
double narrow_shard(const ShardTask& task, const long long* extremes, const long long* amounts,
                    const long long* wire, long long* next) {
  const ShardRow<T> row(task, extremes);
  Search<T> search = row.search(wire);
  if (wire == nullptr) {
    search.above = static_cast<unsigned long long>(amounts[kWireAbove]);
    search.total = static_cast<unsigned long long>(amounts[kWireTotal]);
  }
  const int shift = search.shift(), last = search.bin(search.low, shift);
  unsigned long long over = 0;
  int bin = 0;
  for (; bin < last; ++bin) {
    const auto more = static_cast<unsigned long long>(amounts[bin]);
    if (row.goal.reached(search.above + over + more, search.total)) break;
    over += more;
  }
  search = search.narrowed(bin, shift, over);
  search_to_wire(search, next);
  return static_cast<double>(row.keys.logit(search.high));
}

template <class T>
void summarise_shard(const ShardTask& task, const Executor& each, Scratch* scratch, double cut,
                     double* wire) {
  std::fill(wire, wire + kWireMoments, 0.0);
  RowKernel<T> kernel(task.row, each, scratch);
  Cut<T> known;
  known.value = static_cast<T>(cut);
  std::array<GroupMoments<double>, 2> moments;
  if (task.row.classes > 0) {
    const Segment ends = kernel.extremes();
    const MassRule<T> unused(task.all_classes, T(0), T(1));
    const bool bad = ends.high == kInfinity<double> || ends.teacher_high == kInfinity<double> ||
                     !kernel.summarise(&known, unused, /*whole=*/false);
    wire[kWireBad] = bad;
    if (!bad) moments = kernel.moments_of(known);
  }
  for (int g = 0; g < 2; ++g) moments_to_wire(moments[g], g, wire);
}

template <class T>
void emit_shard(const ShardTask& task, const Executor& each, Scratch* scratch, double cut,
                const GroupMoments<double>* group, double* kl) {
  double sums[2] = {0, 0};
  if (task.row.classes > 0) {
    RowKernel<T>(task.row, each, scratch).emit(static_cast<T>(cut), group, sums);
  }
  std::copy(sums, sums + 2, kl);
}

template <class T>
void fill_shard(const ShardTask& task, double value) {
  Scratch scratch;
  RowKernel<T>(task.row, Executor(), &scratch).fill_gradient(static_cast<T>(value));
}

template <class T>
constexpr ShardKernels kShardKernels = {
    &find_shard_extremes<T>, &count_shard<T>, &spread_shard<T>, &narrow_shard<T>,
    &summarise_shard<T>,     &emit_shard<T>,  &fill_shard<T>};

}  // namespace

ShardKernels shard_kernels(bool wide) {
  return wide ? kShardKernels<double> : kShardKernels<float>;
}

}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
