// The histogram in which selection counts classes.
//
// x = (r_max - r)/T >= 0 is how many nats a class's ranking probability lies under the largest.
// Classes with p <= (1 - threshold)/C cannot be the cut, because all of them together weigh less
// than 1 - threshold. So only x < ln(C/(1 - threshold)) needs resolving; the last bin takes the
// tail, uncounted. The other bins have the same width, so a count bounds a bin's mass from both
// sides without an exponential per class.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "math/cut.h"

namespace gkd {

/// 2,048 bins of 0.0085 nat each at C = 2M: about 1% of a flat row falls into the bins that may
/// hold the cut.
constexpr int kBins = 2048;

/// Relative error allowed for a bin's bounds: x is rounded a few times, at up to 40 nats.
constexpr double kBinTolerance = 1e-4;

/// Nats that the bins must resolve. Selecting by size, these are all that the row spans.
template <class T>
GKD_HD T bin_reach(const StopRule& stop, std::int64_t classes, T high, T low, T inv_temperature) {
  using std::log;
  if (stop.by_mass) {
    return static_cast<T>(log(static_cast<double>(classes) / (1 - stop.threshold)) + 0.01);
  }
  const T span = (high - low) * inv_temperature;
  if (!(span > T(0))) return T(1);  // all finite values are equal, or there is none
  return span < std::numeric_limits<T>::max() ? span : std::numeric_limits<T>::max();
}

template <class T>
struct Bins {
  T high, inv_temperature, reach;

  /// In bins from the first one's upper edge; does not increase with r.
  GKD_HD T position(T r) const { return (high - r) * inv_temperature * (T(kBins - 1) / reach); }
  /// A NaN goes to the last bin.
  GKD_HD int of(T r) const {
    const T p = position(r);
    return p < T(kBins - 1) ? static_cast<int>(p) : kBins - 1;
  }
  /// exp(-x) at a bin's upper edge; its lower edge is the next bin's upper one.
  GKD_HD double weight(int bin) const {
    using std::exp;
    return exp(-static_cast<double>(bin) * static_cast<double>(reach) / (kBins - 1));
  }
};

}  // namespace gkd
