// The stages of a sharded row. Selection uses the bins and keys of math/, moments and gradient the
// passes of an unsharded row.
#include "cpu/kernels/row_passes-inl.h"
#include "cpu/kernels/shard_selection-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

template <class T>
void shard_extremes(const ShardTask& task, const Executor& executor, Scratch* scratch,
                    long long* extremes) {
  T high = -kInfinity<T>, low = kInfinity<T>;
  if (task.row.classes > 0) {
    const Segment row = RowPasses<T>(task.row, executor, scratch).extremes();
    high = static_cast<T>(row.high);
    low = static_cast<T>(row.low);
  }
  extremes_to_message(high, low, extremes);
}

template <class T>
void shard_counts(const ShardTask& task, const long long* extremes, std::int32_t* counts) {
  std::fill(counts, counts + kBins, 0);
  ShardRow<T>(task, extremes)
      .for_each_binned_tile([&](std::int64_t count, const T*, const int* bin) {
        for (std::int64_t k = 0; k < count; ++k) ++counts[bin[k]];
      });
  counts[kBins - 1] = 0;  // the tail is what remains of the classes of the whole row
}

/// Adds the weights of `count` logits; `logits` has room for whole vectors.
template <class T>
void add_logits(const ShardRow<T>& row, const KeyHistogram<T>& histogram, T* logits,
                std::int64_t count) {
  std::uint64_t weights[kTile];
  std::fill(logits + count, logits + padded<T>(count), -kInfinity<T>);
  class_weights(row.stop, row.rule, logits, count, weights);
  histogram.add(logits, weights, count);
}

/// Whether each lane's bin is before `first`.
inline bool is_before(const int* bin, int first, double) { return *bin < first; }
inline VecI32 is_before(const int* bin, int first, VecF32) {
  VecI32 bins;
  std::memcpy(&bins, bin, sizeof(bins));
  return bins < first;
}

/// The first pass, which also sums the weights of all classes and of those above the bins that may
/// hold the cut.
template <class T>
void histogram_first_pass(const ShardRow<T>& row, const KeyHistogram<T>& histogram,
                          const BinRange& range) {
  using V = VecOf<T>;
  std::uint64_t above = 0, total = 0;
  row.for_each_binned_tile([&](std::int64_t count, const T* r, const int* bin) {
    alignas(64) T in_range[kTile];
    std::int64_t n = 0;
    if (row.stop.by_mass) {
      MassAccumulator<V> mass;
      for (std::int64_t k = 0; k < count; k += kWidth<T>) {
        mass.add(row.rule.weight(load<V>(r + k)), is_before(bin + k, range.first, V{}), row.rule);
      }
      mass.flush(row.rule, &above, &total);
    } else {
      for (std::int64_t k = 0; k < count; ++k) above += bin[k] < range.first;
      total += static_cast<std::uint64_t>(count);
    }
    for (std::int64_t k = 0; k < count; ++k) {
      in_range[n] = r[k];
      n += range.holds(bin[k]);
    }
    add_logits(row, histogram, in_range, n);
  });
  histogram.bins[kMsgTotal] = static_cast<long long>(total);
  histogram.bins[kMsgAbove] = static_cast<long long>(above);
}

/// A later pass: only the few classes within the search are weighed.
template <class T>
void histogram_later_pass(const ShardRow<T>& row, const KeyHistogram<T>& histogram,
                          const BinRange& range) {
  using V = VecOf<T>;
  // The lowest key may be that of a NaN, which bounds nothing: only -inf lies beyond it. No library
  // function: see README.md.
  const T lowest = row.keys.logit(histogram.search.low);
  const V last = splat<V>(row.keys.logit(histogram.search.high));
  // NOLINTNEXTLINE(misc-redundant-expression): false for a NaN
  const V first = splat<V>(lowest == lowest ? lowest : -kInfinity<T>);
  read_tiles<T>(row.ranking(), 0, row.task.row.classes,
                [&](std::int64_t, std::int64_t count, const T* r) {
                  alignas(64) T in_range[kTile];
                  std::int64_t n = 0;
                  for (std::int64_t k = 0; k < count; k += kWidth<T>) {
                    const V v = load<V>(r + k);
                    unsigned bits = movemask((v >= first) & (v <= last));
                    for (; bits != 0; bits &= bits - 1) {
                      const std::int64_t j = k + __builtin_ctz(bits);
                      in_range[n] = r[j];
                      n += j < count && range.holds(row.bins.of(r[j]));
                    }
                  }
                  add_logits(row, histogram, in_range, n);
                });
}

template <class T>
void shard_histogram(const ShardTask& task, const long long* extremes, const std::int32_t* counts,
                     const long long* message, long long* bins) {
  const ShardRow<T> row(task, extremes);
  const BinRange range = row.bin_range(counts);
  std::fill(bins, bins + kMsgHistogram, 0);
  const RadixSearch<T> search = row.search(message);
  const KeyHistogram<T> histogram{search, row.keys, bins};
  message == nullptr ? histogram_first_pass(row, histogram, range)
                     : histogram_later_pass(row, histogram, range);
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
  std::fill(message, message + kMsgMoments, 0.0);
  RowPasses<T> passes(task.row, executor, scratch);
  CutResult<T> known;
  known.value = static_cast<T>(cut);
  const GroupMoments<double> empty[2] = {};
  const GroupMoments<double>* group = empty;
  if (task.row.classes > 0) {
    const Segment row = passes.extremes();
    const MassRule<T> unused(task.all_classes, T(0), T(1));
    const bool invalid = row.high == kInfinity<double> || row.teacher_high == kInfinity<double> ||
                         !passes.accumulate_moments(&known, unused, /*whole=*/false);
    message[kMsgInvalid] = invalid;
    if (!invalid) group = known.sums.group;
  }
  for (int g = 0; g < 2; ++g) moments_to_message(group[g], g, message);
}

template <class T>
void shard_gradient(const ShardTask& task, const Executor& executor, Scratch* scratch, double cut,
                    const GroupMoments<double>* group, double* kl) {
  double sums[2] = {0, 0};
  if (task.row.classes > 0) {
    RowPasses<T>(task.row, executor, scratch).write_gradient(static_cast<T>(cut), group, sums);
  }
  std::copy(sums, sums + 2, kl);
}

template <class T>
void shard_fill(const ShardTask& task, double value) {
  Scratch scratch;
  RowPasses<T>(task.row, Executor(), &scratch).fill_gradient(static_cast<T>(value));
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
