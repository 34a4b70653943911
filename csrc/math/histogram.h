// The bins in which selection counts classes, and the bins that must hold the cut.
//
// x = (r_max - r)/T >= 0 is how many nats a class's ranking probability lies under the largest. A
// class with p <= (1 - threshold)/C never closes a group, as all such together weigh under 1 -
// threshold: only x < ln(C/(1 - threshold)) needs resolving, and the last bin takes the tail
// uncounted. Inside, bins are equally wide, so a count bounds a bin's mass from both sides without
// an exponential per class.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "math/cut.h"
#include "math/elementary.h"

namespace gkd {

/// 2,048 bins: 0.0085 nat each at C = 2M, so that about 1% of a flat row is left to look at
/// closely.
constexpr int kBins = 2048;

/// What a bin's bounds may be off by, relative: x is rounded a few times, at up to 40 nats.
constexpr double kBinTolerance = 1e-4;

/// What is to be is_met: a share of the row's mass, or a number of classes.
struct StopRule {
  bool by_mass;
  double threshold;
  std::uint64_t target_count;

  GKD_HD bool is_met(std::uint64_t amount, std::uint64_t total) const {
    return by_mass ? mass_reached(amount, total, threshold) : amount >= target_count;
  }
};

/// Nats that the bins must resolve: by size, all that the row spans.
template <class T>
GKD_HD T bin_reach(const StopRule& goal, std::int64_t classes, T high, T low, T inv_temperature) {
  using std::log;
  if (goal.by_mass) {
    return static_cast<T>(log(static_cast<double>(classes) / (1 - goal.threshold)) + 0.01);
  }
  const T span = (high - low) * inv_temperature;
  if (!(span > T(0))) return T(1);  // one value only, or no finite one
  return span < std::numeric_limits<T>::max() ? span : std::numeric_limits<T>::max();
}

template <class T>
struct Bins {
  T high, inv_temperature, reach;

  /// Does not increase with r; a NaN goes to the last bin.
  GKD_HD int of(T r) const {
    const T place = (high - r) * inv_temperature * (T(kBins - 1) / reach);
    return place < T(kBins - 1) ? static_cast<int>(place) : kBins - 1;
  }
  /// exp(-x) at a bin's upper edge; the lower one is the next bin's.
  GKD_HD double weight(int bin) const {
    using std::exp;
    return exp(-static_cast<double>(bin) * static_cast<double>(reach) / (kBins - 1));
  }
};

/// A class's part in the goal, in integers: the same on every path.
template <class T>
struct ClassWeight {
  bool by_mass;
  T high, inv_temperature, scale;

  GKD_HD std::uint64_t of(T r) const {
    return by_mass ? fixed_mass(exp_of(T((r - high) * inv_temperature)), scale) : 1;
  }
};

}  // namespace gkd
