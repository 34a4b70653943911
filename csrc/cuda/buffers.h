// What kernels pass on in global memory, one entry per row or per segment of a row.
#pragma once

#include "cuda/problem.h"
#include "math/cross_entropy.h"

namespace gkd::cuda {

enum class RowKind : std::int32_t {
  kCounted,
  kIgnored,  ///< zero loss and gradient, even if a logit is NaN
  kInvalid,  ///< NaN loss and gradient: NaN, +inf, only -inf, or a target out of bounds
};

/// What the gradient pass over a row needs. `coef` includes every factor of the stored gradient.
template <class T>
struct RowState {
  GroupCoef<T> coef[2];
  T cut;  ///< smallest ranking logit in the group
  RowKind kind;
  std::int64_t target;  ///< forced into the group; negative: none
};

/// A row's results.
struct RowReport {
  RowSummary summary;
  double primary = 0, secondary = 0, loss = 0;
  std::int64_t size = 0;
};

/// Of a row of training_loss. `coef` includes every factor of the stored gradient.
template <class T>
struct RowHead {
  CrossEntropyCoef<T> coef;
  double cross_entropy, distillation;  ///< the parts of its loss
};

/// The moments of one segment's classes, by group.
struct SegmentMoments {
  GroupMoments<double> group[2];
  std::int32_t invalid = 0;  ///< a logit is NaN or +inf
};

/// One segment's sums of p^ phi(d), by group.
struct SegmentKl {
  double group[2];

  GKD_HD void merge(const SegmentKl& other) {
    group[0] += other.group[0];
    group[1] += other.group[1];
  }
};

}  // namespace gkd::cuda
