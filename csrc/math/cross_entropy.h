// Cross-entropy of a row, at temperature 1, beside its distillation terms.
//
// s_j = scale x_j, and the target's with its margin s'_t = scale (x_t - m):
//   CE = log(1 + sum_{j != t} exp(s_j - s'_t)).
// The sum leaves the target out, so that the loss of a row that is sure of its target keeps its
// digits, and a target of -inf gives +inf.
#pragma once

#include <cmath>
#include <limits>

#include "math/elementary.h"
#include "math/hostdevice.h"

namespace gkd {

/// sum of exp(scale (x_j - high)) over all classes but the target; `high` is the largest of their
/// logits, -inf where there is none. Parts of a row merge as moments do.
struct OtherSum {
  double high = -std::numeric_limits<double>::infinity(), sum = 0;

  GKD_HD void merge(const OtherSum& other, double scale) {
    const OtherSum& top = other.high > high ? other : *this;
    const OtherSum& low = other.high > high ? *this : other;
    // Compared first: -inf minus -inf is NaN.
    const double gap = low.high == top.high ? 0 : (low.high - top.high) * scale;
    *this = {top.high, top.sum + (low.sum == 0 ? 0 : low.sum * std::exp(gap))};
  }
};

/// What a row's gradient needs of cross-entropy: factor exp(scale (x_j - high)) for every class but
/// the target, whose own is `target`. Without cross-entropy both are 0.
template <class T>
struct CrossEntropyCoef {
  T high{}, factor{}, target{};
};

/// Cross-entropy of a row, unweighted.
struct CrossEntropy {
  double loss = 0;
  double others = 0;  ///< probability of all classes but the target
  double factor = 0;  ///< q_j = factor exp(scale (x_j - high))

  template <class T>
  GKD_HD CrossEntropyCoef<T> coefficients(double high, double weight) const {
    const double finite = high > -std::numeric_limits<double>::infinity() ? high : 0;
    return {static_cast<T>(finite), static_cast<T>(weight * factor),
            static_cast<T>(-weight * others)};
  }
};

/// `target_logit`: x_t - m.
GKD_HD CrossEntropy cross_entropy(const OtherSum& other, double target_logit, double scale) {
  // log(sum_{j != t} exp(s_j)) - s'_t
  const double z = (other.high - target_logit) * scale + std::log(other.sum);
  CrossEntropy row;
  if (z > 0) {
    row.loss = z + std::log1p(std::exp(-z));
    row.others = 1 / (1 + std::exp(-z));
  } else {
    row.loss = std::log1p(std::exp(z));
    row.others = std::exp(z) / (1 + std::exp(z));
  }
  row.factor = other.sum > 0 ? row.others / other.sum : 0;
  return row;
}

}  // namespace gkd
