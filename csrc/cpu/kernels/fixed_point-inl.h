// Fixed-point masses (math/cut.h) of whole vectors, and their sums.
//
// A float weight times 2^k is split into three integers, each so small that 32-bit lanes hold a
// tile's sum: the same value as fixed_mass(), without 64-bit conversions, which AVX2 and SSE2 lack.
#pragma once

#include <cmath>

#include "cpu/kernels/load_store-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// How a class's ranking logit becomes mass.
template <class T>
struct MassRule {
  T high, inv_temperature;
  T scale;           ///< 2^k
  int low_bits = 0;  ///< of the integers below the first kHighBits bits
  int mid_bits = 0;
  static constexpr int kHighBits = 24;  // 2^24 times a tile's classes in one lane fits 32 bits

  MassRule(std::int64_t classes, T high, T inv_temperature)
      : high(high), inv_temperature(inv_temperature), scale(static_cast<T>(mass_scale(classes))) {
    const int below = std::ilogb(scale) - kHighBits;
    mid_bits = std::min(below, kHighBits);
    low_bits = below - mid_bits;
  }
  template <class V>
  V weight(V r) const {
    return exp_of(V((r - high) * inv_temperature));
  }
};

/// Adds up the masses of a tile: of all classes, and of those inside the group.
template <class V>
struct MassAccumulator;

template <>
struct MassAccumulator<VecF32> {
  VecU32 total[3] = {}, inside[3] = {};  // with the narrowest vectors a lane reaches 2^31 in a tile

  void add(VecF32 weight, VecI32 is_inside, const MassRule<float>& rule) {
    VecF32 rest = weight * float(1 << MassRule<float>::kHighBits);
    add_integer(&rest, is_inside, 0);
    rest = rest * float(1 << rule.mid_bits);
    add_integer(&rest, is_inside, 1);
    if (rule.low_bits == 0) return;
    rest = rest * float(1 << rule.low_bits);
    add_integer(&rest, is_inside, 2);
  }
  /// Adds the tile's sums to *mass_total and *mass_in and starts again.
  void flush(const MassRule<float>& rule, std::uint64_t* mass_in, std::uint64_t* mass_total) {
    const int shift[3] = {rule.mid_bits + rule.low_bits, rule.low_bits, 0};
    for (int k = 0; k < 3; ++k) {
      *mass_total += sum(total[k]) << shift[k];
      *mass_in += sum(inside[k]) << shift[k];
      total[k] = inside[k] = VecU32{};
    }
  }

 private:
  /// Adds the integer part of *rest and leaves the fraction.
  void add_integer(VecF32* rest, VecI32 is_inside, int k) {
    const VecI32 n = __builtin_convertvector(*rest, VecI32);
    *rest = *rest - __builtin_convertvector(n, VecF32);
    total[k] += reinterpret_cast<VecU32>(n);
    inside[k] += reinterpret_cast<VecU32>(is_inside & n);
  }
  static std::uint64_t sum(VecU32 v) {
    std::uint32_t lanes[kFloats];
    std::memcpy(lanes, &v, sizeof(v));
    std::uint64_t sum = 0;
    for (std::uint32_t lane : lanes) sum += lane;
    return sum;
  }
};

template <>
struct MassAccumulator<double> {
  std::uint64_t total = 0, inside = 0;
  void add(double weight, bool is_inside, const MassRule<double>& rule) {
    const std::uint64_t mass = fixed_mass(weight, rule.scale);
    total += mass;
    inside += is_inside ? mass : 0;
  }
  void flush(const MassRule<double>&, std::uint64_t* mass_in, std::uint64_t* mass_total) {
    *mass_total += total;
    *mass_in += inside;
    total = inside = 0;
  }
};

/// The masses of `count` classes; `logits` has room for whole vectors.
template <class T>
void fixed_masses(const MassRule<T>& rule, const T* logits, std::int64_t count,
                  std::uint64_t* masses) {
  using V = VecOf<T>;
  for (std::int64_t k = 0; k < count; k += kWidth<T>) {
    T weights[kWidth<T>];
    store(rule.weight(load<V>(logits + k)), weights);
    const std::int64_t lanes = std::min<std::int64_t>(kWidth<T>, count - k);
    for (std::int64_t l = 0; l < lanes; ++l) masses[k + l] = fixed_mass(weights[l], rule.scale);
  }
}

/// One mass, computed as a lane of a vector: its last bit must be the same.
template <class T>
std::uint64_t mass_of(const MassRule<T>& rule, T logit) {
  T vector[kWidth<T>];
  std::fill(vector, vector + kWidth<T>, logit);
  std::uint64_t mass;
  fixed_masses(rule, vector, 1, &mass);
  return mass;
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
