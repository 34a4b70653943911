// The stages of a shard's row, for one instruction set. Selection by the bins and keys of math/,
// sums and gradient by the sweeps of an unsharded row.
#include "cpu/shard.h"

#include "cpu/row_kernel.h"
#include "cpu/shard_row.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

template <class T>
void find_shard_extremes(const ShardTask& task, const Executor& each, Scratch* scratch,
                         long long* extremes) {
  T high = -kInfinity<T>, low = kInfinity<T>;
  if (task.row.classes > 0) {
    const Segment ends = RowKernel<T>(task.row, each, scratch).extremes();
    high = static_cast<T>(ends.high);
    low = static_cast<T>(ends.low);
  }
  extremes_to_message(high, low, extremes);
}

template <class T>
void count_shard(const ShardTask& task, const long long* extremes, std::int32_t* counts) {
  std::fill(counts, counts + kBins, 0);
  ShardRow<T>(task, extremes).each_binned([&](std::int64_t count, const T*, const int* bin) {
    for (std::int64_t k = 0; k < count; ++k) ++counts[bin[k]];
  });
  counts[kBins - 1] = 0;  // the tail is what remains of all classes
}

/// Adds to the bins of a search those of n keys that it holds.
template <class T>
struct Spreader {
  const ShardRow<T>& row;
  const RadixSearch<T> search;
  long long* amounts;
  const int shift = search.bin_bits();

  /// `kept` has room for whole packs.
  void add(T* kept, std::int64_t n) const {
    std::uint64_t part[kBlock];
    std::fill(kept + n, kept + padded<T>(n), -kInfinity<T>);
    class_weights(row.goal, row.rule, kept, n, part);
    for (std::int64_t k = 0; k < n; ++k) {
      const KeyOf<T> key = row.keys.of(kept[k]);
      if (search.holds(key)) amounts[search.bin(key, shift)] += part[k];
    }
  }
};

/// Whether each lane's bin lies before `first`.
inline bool before(const int* bin, int first, double) { return *bin < first; }
inline VecI32 before(const int* bin, int first, VecF32) {
  VecI32 bins;
  std::memcpy(&bins, bin, sizeof(bins));
  return bins < first;
}

/// The first spread, which also adds up every class and what lies above the window.
template <class T>
void spread_all(const Spreader<T>& to, const BinRange& window) {
  using V = VecOf<T>;
  const ShardRow<T>& row = to.row;
  std::uint64_t above = 0, total = 0;
  row.each_binned([&](std::int64_t count, const T* r, const int* bin) {
    alignas(64) T kept[kBlock];
    std::int64_t n = 0;
    if (row.goal.by_mass) {
      MassSum<V> mass;
      for (std::int64_t k = 0; k < count; k += kWidth<T>) {
        mass.add(row.rule.weight(load<V>(r + k)), before(bin + k, window.first, V{}), row.rule);
      }
      mass.flush(row.rule, &above, &total);
    } else {
      for (std::int64_t k = 0; k < count; ++k) above += bin[k] < window.first;
      total += static_cast<std::uint64_t>(count);
    }
    for (std::int64_t k = 0; k < count; ++k) {
      kept[n] = r[k];
      n += window.holds(bin[k]);
    }
    to.add(kept, n);
  });
  to.amounts[kMsgTotal] = static_cast<long long>(total);
  to.amounts[kMsgAbove] = static_cast<long long>(above);
}

/// A later one: only classes within the search have to be looked at, and those are few.
template <class T>
void spread_narrowed(const Spreader<T>& to, const BinRange& window) {
  using V = VecOf<T>;
  const ShardRow<T>& row = to.row;
  // A key that is no number's bounds nothing: only -inf lies beyond it. No library function: a copy
  // compiled for this instruction set could be the one that the program keeps.
  const T lowest = row.keys.logit(to.search.low), highest = row.keys.logit(to.search.high);
  // NOLINTNEXTLINE(misc-redundant-expression): false for a NaN
  const V from = splat<V>(lowest == lowest ? lowest : -kInfinity<T>), last = splat<V>(highest);
  each_of<T>(row.ranking(), 0, row.task.row.classes,
             [&](std::int64_t, std::int64_t count, const T* r) {
               alignas(64) T kept[kBlock];
               std::int64_t n = 0;
               for (std::int64_t k = 0; k < count; k += kWidth<T>) {
                 const V v = load<V>(r + k);
                 unsigned bits = movemask((v >= from) & (v <= last));
                 for (; bits != 0; bits &= bits - 1) {
                   const std::int64_t j = k + __builtin_ctz(bits);
                   kept[n] = r[j];
                   n += j < count && window.holds(row.bins.of(r[j]));
                 }
               }
               to.add(kept, n);
             });
}

template <class T>
void spread_shard(const ShardTask& task, const long long* extremes, const std::int32_t* counts,
                  const long long* wire, long long* amounts) {
  const ShardRow<T> row(task, extremes);
  const BinRange window = row.window(counts);
  std::fill(amounts, amounts + kMsgHistogram, 0);
  const Spreader<T> to{row, row.search(wire), amounts};
  wire == nullptr ? spread_all(to, window) : spread_narrowed(to, window);
}

template <class T>
double narrow_shard(const ShardTask& task, const long long* extremes, const long long* amounts,
                    const long long* wire, long long* next) {
  const ShardRow<T> row(task, extremes);
  RadixSearch<T> search = row.search(wire);
  if (wire == nullptr) {
    search.above = static_cast<unsigned long long>(amounts[kMsgAbove]);
    search.total = static_cast<unsigned long long>(amounts[kMsgTotal]);
  }
  const int shift = search.bin_bits(), last = search.bin(search.low, shift);
  unsigned long long over = 0;
  int bin = 0;
  for (; bin < last; ++bin) {
    const auto more = static_cast<unsigned long long>(amounts[bin]);
    if (row.goal.is_met(search.above + over + more, search.total)) break;
    over += more;
  }
  search = search.refined(bin, shift, over);
  search_to_message(search, next);
  return static_cast<double>(row.keys.logit(search.high));
}

template <class T>
void summarise_shard(const ShardTask& task, const Executor& each, Scratch* scratch, double cut,
                     double* wire) {
  std::fill(wire, wire + kMsgMoments, 0.0);
  RowKernel<T> kernel(task.row, each, scratch);
  Cut<T> known;
  known.value = static_cast<T>(cut);
  std::array<GroupMoments<double>, 2> moments;
  if (task.row.classes > 0) {
    const Segment ends = kernel.extremes();
    const MassRule<T> unused(task.all_classes, T(0), T(1));
    const bool bad = ends.high == kInfinity<double> || ends.teacher_high == kInfinity<double> ||
                     !kernel.accumulate_moments(&known, unused, /*whole=*/false);
    wire[kMsgInvalid] = bad;
    if (!bad) moments = kernel.moments_of(known);
  }
  for (int g = 0; g < 2; ++g) moments_to_message(moments[g], g, wire);
}

template <class T>
void emit_shard(const ShardTask& task, const Executor& each, Scratch* scratch, double cut,
                const GroupMoments<double>* group, double* kl) {
  double sums[2] = {0, 0};
  if (task.row.classes > 0) {
    RowKernel<T>(task.row, each, scratch).write_gradient(static_cast<T>(cut), group, sums);
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
