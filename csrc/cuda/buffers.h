// What kernels hand to one another, one entry per row.
#pragma once

#include "cuda/problem.h"

namespace gkd::cuda {

enum class RowKind : std::int32_t {
  kCounted,
  kIgnored,  ///< zero loss and gradient, whatever the row holds
  kInvalid,  ///< NaN loss and gradient: NaN, +inf, only -inf, or a target out of bounds
};

/// What the last sweep over a row needs. `coef` holds every factor of the stored gradient.
template <class T>
struct RowState {
  GroupCoef<T> coef[2];
  T cut;  ///< smallest ranking logit in the group
  RowKind kind;
  std::int64_t target;  ///< forced into the group; negative: none
};

/// What is left of a row when its sweeps are done.
struct RowReport {
  RowSummary summary;
  double primary = 0, secondary = 0, loss = 0;
  std::int64_t size = 0;
};

/// One part of a row, summarised.
struct PartMoments {
  GroupMoments<double> group[2];
  std::int32_t bad = 0;  ///< holds NaN or +inf
};

/// One part's sums of p^ phi(d), by group.
struct PartKl {
  double group[2];
};

}  // namespace gkd::cuda
