// Fixed-point masses (math/cut.h) of whole packs, and their sums.
//
// A float weight times 2^k is taken apart into three whole numbers, each small enough that 32-bit
// lanes hold a block's sum: the same value as fixed_mass(), without 64-bit conversions, which AVX2
// and SSE2 lack. A template header, because row.cpp compiles it once per instruction set.
#pragma once

#include <cmath>

#include "cpu/blocks.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// How a class's ranking logit becomes mass.
template <class T>
struct MassRule {
  T high, inv_temperature;
  T scale;           ///< 2^k
  int low_bits = 0;  ///< of the parts below the first kHighBits bits
  int mid_bits = 0;
  static constexpr int kHighBits = 24;  // 2^24 times a lane's share of a block fits 32 bits

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

/// Sums of masses over all lanes and over some.
template <class V>
struct MassSum;

template <>
struct MassSum<VecF32> {
  VecU32 all[3] = {}, in[3] = {};  // a narrow pack's lanes gather up to 2^31 in a block

  static VecI32 whole(VecF32 x) { return __builtin_convertvector(x, VecI32); }
  void add(VecF32 weight, VecI32 inside, const MassRule<float>& rule) {
    VecF32 rest = weight * float(1 << MassRule<float>::kHighBits);
    part(&rest, inside, 0);
    rest = rest * float(1 << rule.mid_bits);
    part(&rest, inside, 1);
    if (rule.low_bits == 0) return;
    rest = rest * float(1 << rule.low_bits);
    part(&rest, inside, 2);
  }
  /// Adds what has gathered to *total and *mass_in and starts again: once a block.
  void flush(const MassRule<float>& rule, std::uint64_t* mass_in, std::uint64_t* total) {
    const int shift[3] = {rule.mid_bits + rule.low_bits, rule.low_bits, 0};
    for (int k = 0; k < 3; ++k) {
      *total += sum(all[k]) << shift[k];
      *mass_in += sum(in[k]) << shift[k];
      all[k] = in[k] = VecU32{};
    }
  }

 private:
  void part(VecF32* rest, VecI32 inside, int k) {
    const VecI32 n = whole(*rest);
    *rest = *rest - __builtin_convertvector(n, VecF32);
    all[k] += reinterpret_cast<VecU32>(n);
    in[k] += reinterpret_cast<VecU32>(inside & n);
  }
  static std::uint64_t sum(VecU32 v) {
    std::uint32_t lanes[kFloats];
    std::memcpy(lanes, &v, sizeof(v));
    std::uint64_t total = 0;
    for (std::uint32_t lane : lanes) total += lane;
    return total;
  }
};

template <>
struct MassSum<double> {
  std::uint64_t all = 0, in = 0;
  void add(double weight, bool inside, const MassRule<double>& rule) {
    const std::uint64_t mass = fixed_mass(weight, rule.scale);
    all += mass;
    in += inside ? mass : 0;
  }
  void flush(const MassRule<double>&, std::uint64_t* mass_in, std::uint64_t* total) {
    *total += all;
    *mass_in += in;
    all = in = 0;
  }
};

/// The masses of `count` classes, in packs: `keys` has room for a whole number of them.
template <class T>
void masses_of(const MassRule<T>& rule, const T* keys, std::int64_t count, std::uint64_t* masses) {
  using V = VecOf<T>;
  for (std::int64_t k = 0; k < count; k += kWidth<T>) {
    T weights[kWidth<T>];
    store(rule.weight(load<V>(keys + k)), weights);
    const std::int64_t lanes = std::min<std::int64_t>(kWidth<T>, count - k);
    for (std::int64_t l = 0; l < lanes; ++l) masses[k + l] = fixed_mass(weights[l], rule.scale);
  }
}

/// One mass, by the packs' arithmetic.
template <class T>
std::uint64_t mass_of(const MassRule<T>& rule, T key) {
  T block[kWidth<T>];
  std::fill(block, block + kWidth<T>, key);
  std::uint64_t mass;
  masses_of(rule, block, 1, &mass);
  return mass;
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
