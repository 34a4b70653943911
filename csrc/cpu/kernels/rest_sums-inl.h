// Sums over the classes outside a group whose logits are known one by one (sparse.cpp).
#pragma once

#include <cmath>

#include "cpu/kernels/other_terms-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// The exponentials of classes outside the group, relative to a logit that none of them exceeds.
template <class T>
struct RestTerms {
  using V = VecOf<T>;
  T high, inv_t, scale;
  int squarings;  ///< squarings_of(T), for Others::kPower

  V student(V x) const { return exp_of(V((x - high) * inv_t)); }
  /// exp(scale (x - high)), given student(x).
  template <Others kOthers>
  V other(V x, V b) const {
    if constexpr (kOthers == Others::kPower) return repeated_square(b, squarings);
    return exp_of_negative(V((x - high) * scale));
  }
};

/// Their sums over a segment, tile by tile, relative to the largest logit so far.
template <class T>
struct RestAccumulator {
  using V = VecOf<T>;
  RestTerms<T> terms;
  bool has_nan = false;
  DoubleAccumulator<V> sum, sum_others;

  template <Others kOthers>
  void add(const T* x, std::int64_t size) {
    const V none = splat<V>(-kInfinity<T>);
    V top = splat<V>(terms.high);
    unsigned is_number = kAllTrue<V>;
    for (std::int64_t k = 0; k < size; k += kWidth<T>) {
      const V v = load<V>(x + k);
      top = v > top ? v : top;
      is_number &= compare_bits(v, none);
    }
    has_nan |= is_number != kAllTrue<V>;
    const T found = reduce_max(top);
    if (!(found > -kInfinity<T>)) return;
    if (found > terms.high) {
      const double gap = static_cast<double>(terms.high) - static_cast<double>(found);
      sum.multiply(std::exp(gap * terms.inv_t));
      sum_others.multiply(std::exp(gap * terms.scale));
      terms.high = found;
    }
    const RestTerms<T> t = terms;  // in registers
    V tile{}, others{};
    for (std::int64_t k = 0; k < size; k += kWidth<T>) {
      const V v = load<V>(x + k), b = t.student(v);
      tile += b;
      if constexpr (kOthers != Others::kNone) others += t.template other<kOthers>(v, b);
    }
    sum.add(tile);
    sum_others.add(others);
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
