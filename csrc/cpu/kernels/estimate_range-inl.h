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

/// Counts the row's classes into scratch->counts[0, bins.count). Classes under the bins go to one
/// slot per lane behind them.
template <class T>
void count_row(const Row<T>& row, const CentredBins<T>& bins, const Executor& executor,
               Scratch* scratch) {
  const std::int64_t tables = std::min(kTables, row.segments()), table_size = bins.count + kFloats;
  const std::int64_t table_classes = (row.segments() + tables - 1) / tables * kSegment;
  scratch->counts.assign(tables * table_size, 0);
  executor(tables, [&](std::int64_t table) {
    std::int32_t* counts = scratch->counts.data() + table * table_size;
    const std::int64_t begin = std::min(row.classes, table * table_classes);
    const std::int64_t end = std::min(row.classes, begin + table_classes);
    VecI32 under;
    for (int l = 0; l < kFloats; ++l) under[l] = bins.count + l;
    row.for_each_ranking_tile(begin, end, [&](std::int64_t count, auto r) {
      // First the slots of a whole tile: through memory they reach the counts sooner than lane by
      // lane.
      alignas(64) std::int32_t slots[kTile];
      for (std::int64_t k = 0; k < count; k += kWidth<T>) {
        const VecOf<T> position = (bins.high - r[k]) * bins.per_unit + T(0.5);
        if constexpr (std::is_same_v<T, float>) {
          // So written that a NaN goes under the bins, and no float outside int is converted.
          const VecI32 in = position < float(bins.count);
          const VecF32 bounded = in & (position > VecF32{}) ? position : VecF32{};
          store(in ? __builtin_convertvector(bounded, VecI32) : under, slots + k);
        } else {
          const T bounded = position < T(bins.count) ? position : T(bins.count);
          slots[k] = bounded > T(0) ? static_cast<int>(bounded) : 0;
        }
      }
      for (std::int64_t k = 0; k < count; k += kWidth<T>) {
        for (int l = 0; l < kWidth<T>; ++l) ++counts[slots[k + l]];
      }
    });
  });
  std::int32_t* sum = scratch->counts.data();
  for (std::int64_t k = 1; k < tables; ++k) {
    for (int b = 0; b < bins.count; ++b) sum[b] += sum[k * table_size + b];
  }
}

/// Classes of a sample: many enough that the window that they leave holds a few percent of a row.
inline constexpr std::int64_t kSample = 8192;

/// Logits from all over the row, one cache line of floats each time.
template <class T>
void read_sample(const Row<T>& row, T* sample) {
  constexpr std::int64_t kRun = 16;
  for (std::int64_t k = 0; k < kSample / kRun; ++k) {
    alignas(64) T buffer[kTile];
    const std::int64_t begin = (row.classes - kRun) * k / (kSample / kRun - 1);
    const T* run = read_tile(row.rank, begin, kRun, buffer);
    std::copy(run, run + kRun, sample + k * kRun);
  }
}

/// A window of logits from the counts of a row's classes, or of a sample of them, by logit.
template <class T>
struct WindowEstimate {
  const StopRule& stop;
  double scale;                ///< classes per counted class
  std::vector<float> weight;   ///< of one class, by bin
  const std::int32_t* counts;  ///< without the row's largest class, of weight 1, which is known

  /// The bins that hold the cut, within three standard deviations of what a sample leaves open: a
  /// class of weight w adds w (1[above the cut] - threshold) to what decides by mass, and 1 to a
  /// count. `nat`: the bins' width, which leaves open where in a bin a class lies. The row's
  /// largest class, of weight 1, is known.
  std::pair<int, int> bins(double nat) const {
    // Sums to the end of each bin.
    std::vector<double> above(weight.size()), squares(weight.size());
    const double first = 1 / scale;
    double sum = first, sum_squares = 0;
    for (std::size_t b = 0; b < weight.size(); ++b) {
      const double w = weight[b], in_bin = w * counts[b];
      above[b] = sum += in_bin;
      squares[b] = sum_squares += in_bin * w;
    }
    const double target =
        stop.by_mass ? stop.threshold * sum : static_cast<double>(stop.target_count) / scale;
    const auto last = static_cast<int>(weight.size()) - 1;
    const auto bin_of = [&](double x) {  // the first at whose end x is reached
      return std::min(
          static_cast<int>(std::lower_bound(above.begin(), above.end(), x) - above.begin()), last);
    };
    const double squares_above = squares[bin_of(target)];
    const double share = stop.by_mass ? stop.threshold : squares_above / sum_squares;
    const double variance =
        (1 - share) * (1 - share) * squares_above + share * share * (sum_squares - squares_above);
    double error = 3 * std::sqrt(variance * (1 - first));
    if (stop.by_mass) {
      error += nat * std::sqrt(sum_squares) + 1e-4 * (1 - stop.threshold) * first + 2e-6 * sum;
    }
    return {bin_of(target - error), bin_of(target + error)};
  }
};

/// The masses of classes at the bins' centres, `nat` nats apart; the first is the row's largest.
inline std::vector<float> centre_masses(double nat, int bins) {
  std::vector<float> mass(bins);
  for (int b = 0; b < bins; ++b) mass[b] = static_cast<float>(-b * nat);
  for (int b = 0; b < bins; b += kFloats) {
    store(exp_of(load<VecF32>(mass.data() + b)), mass.data() + b);
  }
  return mass;
}

/// `high` and `low`: the row's largest logit and its smallest finite one. `sample`: from a sample,
/// which costs a tenth and leaves a larger window. An empty window: there is none.
template <class T>
LogitRange<T> estimate_range(const Row<T>& row, const StopRule& stop, T high, T low,
                             double temperature, bool sample, const Executor& executor,
                             Scratch* scratch) {
  // Classes with p <= (1 - threshold)/C cannot be the cut: all of them together weigh too little.
  // With six nats more, what is left out weighs less than 1/400 of that.
  double depth = static_cast<double>(high) - static_cast<double>(low);
  if (stop.by_mass) {
    const double reach = std::log(static_cast<double>(row.classes) / (1 - stop.threshold)) + 6;
    depth = std::min(depth, reach * temperature);
  }
  const T above_all = std::nextafter(high, kInfinity<T>);
  if (depth == 0) return {above_all, high};  // all finite logits are equal
  alignas(64) T sampled[kSample];
  Row<T> counted = row;
  if (sample) {
    read_sample(row, sampled);
    counted.rank = {sampled, 1, kDtype<T>};
    counted.classes = kSample;
  }
  int bin_count = kMinBins;
  const std::int64_t bins_wanted =
      std::max(counted.classes / 16, std::min<std::int64_t>(counted.classes / 4, 128));
  while (bin_count < kMaxBins && bin_count < bins_wanted) bin_count *= 2;
  const double width = depth / (bin_count - 1);
  const T per_unit = static_cast<T>(1 / width);
  if (!(width > 0) || !(per_unit < kInfinity<T>) || !(per_unit > T(0))) return {high, high};
  const CentredBins<T> bins{high, per_unit, bin_count};
  count_row(counted, bins, executor, scratch);
  std::int32_t* counts = scratch->counts.data();
  counts[0] = std::max(counts[0] - 1, 0);
  const double nat = bins.width() / temperature;
  const WindowEstimate<T> estimate{
      stop, static_cast<double>(row.classes) / static_cast<double>(counted.classes),
      stop.by_mass ? centre_masses(nat, bin_count) : std::vector<float>(bin_count, 1), counts};
  const auto [first, last] = estimate.bins(nat);

  // The window is a little larger than the bins: rounding may have moved a class across an edge.
  const double margin = 1e-2 * width + 4 * std::numeric_limits<T>::epsilon() *
                                           std::max(std::abs(static_cast<double>(high)), depth);
  const auto edge = [&](double bin) { return static_cast<double>(high) - bin * width; };
  return {first == 0 ? above_all : static_cast<T>(edge(first - 0.5) + margin),
          std::max(static_cast<T>(edge(last + 0.5) - margin), std::numeric_limits<T>::lowest())};
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
