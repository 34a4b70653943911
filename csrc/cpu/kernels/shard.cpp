// The stages of a sharded row. Selection uses the bins and keys of math/, moments and gradient the
// passes of an unsharded row.
#include "cpu/kernels/row_passes-inl.h"
#include "cpu/kernels/select-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

template <class T>
void shard_extremes(const ShardTask& task, const Executor& executor, Scratch* scratch,
                    long long* extremes) {
  const Segment row = RowPasses<T>(task.row, executor, scratch).extremes();
  extremes_to_message(static_cast<T>(row.high), static_cast<T>(row.low), extremes);
}

/// The bins that must hold the cut.
struct BinRange {
  int first, last;
  bool holds(int bin) const { return bin >= first && bin <= last; }
};

/// A shard's row under selection: what every stage needs to know about the whole row.
template <class T>
struct ShardRow {
  const ShardTask& task;
  const Selection& selection = task.row.selection;
  const LogitsRow& ranking = selection.by_student ? task.row.student : task.row.teacher;
  StopRule stop = stop_rule(selection);
  T high;
  T inv_t =
      T(1) / static_cast<T>(selection.temperature_or(task.row.weights.exponent_temperature()));
  Keys<T> keys{task.has_wide_keys ? kDtype<T> : ranking.dtype};
  gkd::Bins<T> bins;
  MassRule<T> rule{task.all_classes, high, inv_t};

  ShardRow(const ShardTask& task, const long long* extremes)
      : task(task),
        high(high_from_message<T>(extremes)),
        bins{high, inv_t,
             bin_reach(stop, task.all_classes, high, low_from_message<T>(extremes), inv_t)} {}

  void bins_of(const T* r, std::int64_t count, int* bin) const {
    for (std::int64_t k = 0; k < count; ++k) bin[k] = bins.of(r[k]);
  }
  RadixSearch<T> search(const long long* message) const {
    return message == nullptr ? first_search(keys, high) : search_from_message<T>(message);
  }

  /// From the first bin at whose end the stop rule can be met to the first where it must be.
  BinRange bin_range(const std::int32_t* counts) const {
    // exp(-x) at the bins' edges; the rounding of the products is much less than the tolerance.
    const double step = bins.weight(1);
    struct Bounds {
      double upper, lower;
      std::int64_t count;
    };
    Bounds sum{}, at_end[kBins - 1];
    double edge = 1;
    for (int b = 0; b < kBins - 1; ++b) {
      sum.upper += counts[b] * edge * (1 + kBinTolerance);
      edge *= step;
      sum.lower += counts[b] * edge * (1 - kBinTolerance);
      sum.count += counts[b];
      at_end[b] = sum;
    }
    const double tail = static_cast<double>(task.all_classes - sum.count) * bins.weight(kBins - 1);
    const double least = stop.threshold * sum.lower;
    const double most = stop.threshold * (sum.upper + tail * (1 + kBinTolerance));
    const auto first_bin = [&](auto reached) {
      return static_cast<int>(std::find_if(at_end, at_end + kBins - 1, reached) - at_end);
    };
    if (!stop.by_mass) {
      const int bin = first_bin([&](const Bounds& b) {
        return static_cast<std::uint64_t>(b.count) >= stop.target_count;
      });
      return {bin, bin};
    }
    return {first_bin([&](const Bounds& b) { return b.upper >= least; }),
            first_bin([&](const Bounds& b) { return b.lower >= most; })};
  }

  /// Adds a tile's weight to *total, and that of the classes in bins before `first` to *above.
  void weigh(const T* r, const int* bin, std::int64_t count, int first, std::uint64_t* above,
             std::uint64_t* total) const {
    std::uint64_t weights[kTile];
    class_weights(stop, rule, r, count, weights);
    for (std::int64_t k = 0; k < count; ++k) {
      *total += weights[k];
      *above += bin[k] < first ? weights[k] : 0;
    }
  }
};

template <class T>
void shard_counts(const ShardTask& task, const long long* extremes, std::int32_t* counts) {
  std::fill(counts, counts + kBins, 0);
  const ShardRow<T> row(task, extremes);
  read_tiles<T>(row.ranking, 0, task.row.classes, [&](std::int64_t count, const T* r) {
    int bin[kTile];
    row.bins_of(r, count, bin);
    for (std::int64_t k = 0; k < count; ++k) ++counts[bin[k]];
  });
  counts[kBins - 1] = 0;  // the tail is what remains of the classes of the whole row
}

/// The first pass also sums the weights of all classes and of those above the bins that may hold
/// the cut. In a later pass only the few classes within the search are weighed.
template <class T>
void shard_histogram(const ShardTask& task, const long long* extremes, const std::int32_t* counts,
                     const long long* message, long long* bins) {
  const ShardRow<T> row(task, extremes);
  const BinRange range = row.bin_range(counts);
  std::fill(bins, bins + kMsgHistogram, 0);
  const RadixSearch<T> search = row.search(message);
  const KeyHistogram<T> histogram{search, row.keys, bins};
  std::uint64_t above = 0, total = 0;
  read_tiles<T>(row.ranking, 0, task.row.classes, [&](std::int64_t count, const T* r) {
    alignas(64) T in_range[kTile];
    int bin[kTile];
    if (message == nullptr) {
      row.bins_of(r, count, bin);
      row.weigh(r, bin, count, range.first, &above, &total);
    } else {
      count = candidates_of(search, row.keys, r, count, in_range);
      r = in_range;
      row.bins_of(r, count, bin);
    }
    std::int64_t n = 0;
    for (std::int64_t k = 0; k < count; ++k) {
      in_range[n] = r[k];
      n += range.holds(bin[k]);
    }
    histogram.add(row.stop, row.rule, in_range, n);
  });
  bins[kMsgTotal] = static_cast<long long>(total);
  bins[kMsgAbove] = static_cast<long long>(above);
}

template <class T>
double shard_refine(const ShardTask& task, const long long* extremes, const long long* bins,
                    const long long* message, long long* next) {
  const ShardRow<T> row(task, extremes);
  RadixSearch<T> search = row.search(message);
  if (message == nullptr) {
    search.above = static_cast<unsigned long long>(bins[kMsgAbove]);
    search.total = static_cast<unsigned long long>(bins[kMsgTotal]);
  }
  search = refine(search, row.stop, bins);
  search_to_message(search, next);
  return static_cast<double>(row.keys.logit(search.high));
}

template <class T>
void shard_moments(const ShardTask& task, const Executor& executor, Scratch* scratch, double cut,
                   double* message) {
  RowPasses<T> passes(task.row, executor, scratch);
  CutResult<T> known{static_cast<T>(cut)};
  bool invalid = false;
  if (task.row.classes > 0) {
    const Segment row = passes.extremes();
    invalid = row.high == kInfinity<double> || row.teacher_high == kInfinity<double> ||
              !passes.accumulate_moments(&known, /*whole=*/false);
  }
  if (invalid) known.sums = RowSums{};
  invalid |= !std::isfinite(task.row.margin);
  for (int g = 0; g < 2; ++g) moments_to_message(known.sums.group[g], g, message);
  message[kMsgInvalid] = invalid;
  if (!passes.with_cross_entropy) return;
  const bool is_here = task.row.target >= 0 && task.row.target < task.row.classes;
  message[kMsgOthers] = known.sums.others.high;
  message[kMsgOthers + 1] = known.sums.others.sum;
  message[kMsgTarget] = is_here ? passes.target_logit() : -kInfinity<double>;
}

template <class T>
void shard_gradient(const ShardTask& task, const Executor& executor, Scratch* scratch, double cut,
                    const GroupMoments<double>* group, const HeadOfRow& head, double* kl) {
  RowPasses<T>(task.row, executor, scratch).write_gradient(static_cast<T>(cut), group, head, kl);
}

template <class T>
void shard_fill(const ShardTask& task, double value) {
  fill_gradient(task.row.gradient, task.row.classes, static_cast<T>(value));
}

template <class T>
constexpr ShardKernels kShardKernels = {&shard_extremes<T>, &shard_counts<T>,  &shard_histogram<T>,
                                        &shard_refine<T>,   &shard_moments<T>, &shard_gradient<T>,
                                        &shard_fill<T>};

}  // namespace

/// Declared in row.cpp, which puts them into the table.
ShardKernels shard_kernels(bool in_double) {
  return in_double ? kShardKernels<double> : kShardKernels<float>;
}

}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
