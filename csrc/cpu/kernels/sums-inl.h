// Sums over whole vectors of classes: fixed-point masses (math/cut.h), and moments.
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

/// The integer weights of `count` classes under a stop rule: their masses, or 1 each. A class that
/// is left over from whole vectors is computed as a lane of one too: its last bit must be the same.
template <class T>
void class_weights(const StopRule& stop, const MassRule<T>& rule, const T* logits,
                   std::int64_t count, std::uint64_t* weights) {
  if (!stop.by_mass) {
    std::fill(weights, weights + count, 1);
    return;
  }
  for (std::int64_t k = 0; k < count; k += kWidth<T>) {
    const std::int64_t lanes = std::min<std::int64_t>(kWidth<T>, count - k);
    T last[kWidth<T>] = {}, lane[kWidth<T>];
    const T* in = logits + k;
    if (lanes < kWidth<T>) in = std::copy(in, in + lanes, last) - lanes;
    store(rule.weight(load<VecOf<T>>(in)), lane);
    for (std::int64_t l = 0; l < lanes; ++l) weights[k + l] = fixed_mass(lane[l], rule.scale);
  }
}

/// The weights of all classes together.
template <class T>
std::uint64_t total_weight(const StopRule& stop, const MassRule<T>& rule, const T* logits,
                           std::int64_t count) {
  std::uint64_t weights[kTile], total = 0;
  for (std::int64_t j = 0; j < count; j += kTile) {
    const std::int64_t n = std::min(kTile, count - j);
    class_weights(stop, rule, logits + j, n, weights);
    for (std::int64_t k = 0; k < n; ++k) total += weights[k];
  }
  return total;
}

/// Ranking logits from `high` up are in the group, those under `low` are not, and those between are
/// undecided: the moments leave them out and list them. high == low: the cut is known.
template <class T>
struct LogitRange {
  T high, low;
};

/// What the masses of the ranking logits are computed from.
enum class MassFrom { kNothing, kTeacherTerm, kRank };

/// Accumulates a segment's moments tile by tile.
template <class T, MassFrom kMass>
struct MomentsAccumulator {
  using V = VecOf<T>;
  LogitRange<T> window;
  Shift<T> shift[2];
  T inv_t;
  MassRule<T> rule;
  bool by_student;
  DoubleAccumulator<V> sum_teacher[2], sum_student[2], sum_diff[2];
  RowSums sums;

  /// Classes [0, count) of a tile; `in_window` receives first_class + k for each class k in the
  /// window.
  template <class Logits>
  void add(Logits s, Logits u, Logits r, std::int64_t count, std::uint32_t first_class,
           std::vector<std::uint32_t>* in_window) {
    const V high = splat<V>(window.high), low = splat<V>(window.low), zero{};
    const V in_u = splat<V>(shift[0].teacher), in_s = splat<V>(shift[0].student);
    const V out_u = splat<V>(shift[1].teacher), out_s = splat<V>(shift[1].student);
    V tile_teacher[2] = {}, tile_student[2] = {}, tile_diff[2] = {};
    MassAccumulator<V> mass;
    std::int64_t inside = 0, undecided = 0;
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      const V student = s[k], teacher = u[k], rank = r[k];
      const MaskOf<V> in = rank >= high;
      const Shift<V> lane_shift{kMass == MassFrom::kTeacherTerm ? in_u : (in ? in_u : out_u),
                                in ? in_s : out_s};
      const Terms<V> t = class_terms(student, teacher, lane_shift, inv_t);
      if constexpr (kMass == MassFrom::kTeacherTerm) {
        mass.add(t.exp_teacher, in, rule);
      } else if constexpr (kMass == MassFrom::kRank) {
        mass.add(rule.weight(by_student ? student : teacher), in, rule);
      }
      const unsigned in_bits = movemask(in);
      const MaskOf<V> not_under = rank >= low;
      unsigned window_bits = movemask(not_under) & ~in_bits;
      undecided += __builtin_popcount(window_bits);
      for (; window_bits != 0; window_bits &= window_bits - 1) {
        in_window->push_back(first_class +
                             static_cast<std::uint32_t>(k + __builtin_ctz(window_bits)));
      }
      tile_teacher[0] += in ? t.exp_teacher : zero;
      tile_student[0] += in ? t.exp_student : zero;
      tile_diff[0] += in ? t.diff : zero;
      tile_teacher[1] += not_under ? zero : t.exp_teacher;
      tile_student[1] += not_under ? zero : t.exp_student;
      tile_diff[1] += not_under ? zero : t.diff;
      inside += __builtin_popcount(in_bits);
    }
    for (int g = 0; g < 2; ++g) {
      sum_teacher[g].add(tile_teacher[g]);
      sum_student[g].add(tile_student[g]);
      sum_diff[g].add(tile_diff[g]);
    }
    // Padding has the ranking logit -inf, which is in the group where every class is.
    if (window.high == -kInfinity<T>) inside = count;
    sums.group[0].count += inside;
    sums.group[1].count += count - inside - undecided;
    if (kMass != MassFrom::kNothing) mass.flush(rule, &sums.mass_in, &sums.mass_total);
  }

  RowSums result() const {
    RowSums result = sums;
    for (int g = 0; g < 2; ++g) {
      result.group[g].sum_teacher = sum_teacher[g].sum();
      result.group[g].sum_student = sum_student[g].sum();
      result.group[g].sum_diff = sum_diff[g].sum();
    }
    return result;
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
