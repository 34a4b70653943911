// What one class weighs in a selection: its mass, as an integer, or 1.
#pragma once

#include "cuda/problem.h"
#include "math/elementary.h"
#include "math/histogram.h"

namespace gkd::cuda {

/// Whether exponents relative to an integer near the row's largest are exact enough: a float holds
/// the integer.
__device__ __forceinline__ bool has_exact_exponents(float integer) { return fabsf(integer) < 1e6f; }

/// A class's probability up to a factor, the same for the whole row: exp((r - high)/T). In float it
/// is 2^(r c - k) with c = log2(e)/T and k the integer next to high c, bit for bit the a_j that the
/// passes over vectors sum (vector_row.cuh); it is at most sqrt(2). Where k would lose digits, r is
/// taken relative to `high`.
template <class T>
struct ClassMass {
  T offset, inv_temperature;

  ClassMass() = default;
  __device__ ClassMass(T high, T inv_temperature)
      : offset(high), inv_temperature(inv_temperature) {}
  __device__ __forceinline__ T of(T r) const { return exp_of((r - offset) * inv_temperature); }
};
template <>
struct ClassMass<float> {
  float offset, factor, zero;

  ClassMass() = default;
  __device__ ClassMass(float high, float inv_temperature)
      : offset(0), factor(inv_temperature * kLog2e), zero(rintf(high * factor)) {
    if (!has_exact_exponents(zero)) offset = high, zero = 0;
  }
  /// Whether exponent() is that of every class.
  __device__ bool is_plain() const { return offset == 0; }
  __device__ __forceinline__ float exponent(float r) const { return fmaf(r, factor, -zero); }
  __device__ __forceinline__ float of(float r) const { return exp2_approx(exponent(r - offset)); }
};

/// Integer weight of one class. Identical on all paths, threads and ranks.
template <class T>
struct ClassWeight {
  bool by_mass;
  ClassMass<T> mass;
  T scale;

  __device__ __forceinline__ std::uint64_t of(T r) const {
    return by_mass ? fixed_mass(mass.of(r), scale) : 1;
  }
};

/// `high`: the row's largest ranking logit.
template <class T>
__device__ __forceinline__ ClassWeight<T> class_weight(const Problem& p, T high,
                                                       T inv_temperature) {
  return {p.selection.group_size < 0, {high, inv_temperature}, p.template weight_scale<T>()};
}
template <class T>
__device__ __forceinline__ ClassWeight<T> class_weight(const Problem& p, const Bins<T>& bins) {
  return class_weight(p, bins.high, bins.inv_temperature);
}

}  // namespace gkd::cuda
