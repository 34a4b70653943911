// Sums over whole vectors of classes: masses (math/cut.h), and moments.
#pragma once

#include <cmath>

#include "cpu/kernels/near_terms-inl.h"
#include "cpu/kernels/other_terms-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// How a class's ranking logit becomes mass.
template <class T>
struct MassRule {
  T high, inv_temperature;
  T scale;  ///< 2^k

  MassRule(std::int64_t classes, T high, T inv_temperature)
      : high(high), inv_temperature(inv_temperature), scale(static_cast<T>(mass_scale(classes))) {}
  template <class V>
  V weight(V r) const {
    return exp_of(V((r - high) * inv_temperature));
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

/// What the masses of the ranking logits are: the terms a_j, a function of the logits, or not asked
/// for. With a known cut nothing is listed either.
enum class MassFrom { kKnownCut, kNothing, kTeacherTerm, kRank };

/// Cross-entropy's sum of a segment, tile by tile. The largest logit so far is its reference, so
/// that nothing overflows: a pass that finds the row's largest first would wait for memory.
template <class T>
struct OthersAccumulator {
  using V = VecOf<T>;
  T scale, high = -kInfinity<T>;
  DoubleAccumulator<V> sum;

  template <class Logits>
  void add(Logits others, std::int64_t size) {
    V top = splat<V>(high);
    for (std::int64_t k = 0; k < size; k += kWidth<T>) {
      const V v = others[k];
      top = v > top ? v : top;
    }
    const T found = reduce_max(top);
    if (!(found > -kInfinity<T>)) return;
    if (found > high) {
      sum.multiply(std::exp(static_cast<double>(high - found) * scale));
      high = found;
    }
    const OtherTerms<T> terms{high, scale};
    V tile{};
    for (std::int64_t k = 0; k < size; k += kWidth<T>) tile += terms.of(others[k]);
    sum.add(tile);
  }
  OtherSum result() const { return {high, sum.sum()}; }
};

/// Accumulates a segment's moments tile by tile; with kOthers also the sum of cross-entropy.
template <class T, MassFrom kMass, bool kOthers = false>
struct MomentsAccumulator {
  using V = VecOf<T>;
  LogitRange<T> window;
  Shift<T> shift[2];
  T inv_t;
  const MassRule<T>* rule = nullptr;
  bool by_student = false;
  LogitPairs<T>* undecided = nullptr;
  int squarings = -1;  ///< cross-entropy's exponentials are b_j squared so often; negative: are not
  OthersAccumulator<T> others_alone{1};  ///< where they are not
  const NearTerms<T> near{shift, inv_t};
  ExactAccumulator<V> mass[2];
  DoubleAccumulator<V> sum_teacher[2], sum_student[2], sum_diff[2], sum_powers[2];
  long long count[2] = {0, 0};

  /// Classes [0, size) of a tile, which may have the target. `exp_teacher` receives the a_j, in
  /// whole vectors.
  template <class Logits>
  void add(Logits s, Logits u, Logits r, Logits others, std::int64_t size, bool has_target,
           T* exp_teacher) {
    // Two short loops: one long one would leave the processor fewer vectors to overlap.
    alignas(64) T exp_student[kTile], diff[kTile];
    const V high = splat<V>(window.high), low = splat<V>(window.low), zero{};
    {
      const V in_u = splat<V>(shift[0].teacher), in_s = splat<V>(shift[0].student);
      const V out_u = splat<V>(shift[1].teacher), out_s = splat<V>(shift[1].student);
      const V in_gap = splat<V>(near.gap[0]), out_gap = splat<V>(near.gap[1]);
      for (std::int64_t k = 0; k < size; k += kWidth<T>) {
        const V student = s[k], teacher = u[k];
        const MaskOf<V> in = r[k] >= high;
        const Shift<V> lane_shift{kMass == MassFrom::kKnownCut ? pick(in, in_u, out_u) : in_u,
                                  pick(in, in_s, out_s)};
        const V ratio = near.log_ratio(student, teacher, lane_shift, pick(in, in_gap, out_gap));
        const Terms<V> t = near.holds(ratio)
                               ? near.terms(near.exp_teacher(teacher, lane_shift.teacher), ratio)
                               : class_terms(student, teacher, lane_shift, inv_t);
        store(t.exp_teacher, exp_teacher + k);
        store(t.exp_student, exp_student + k);
        store(t.diff, diff + k);
      }
    }
    const bool powers = kOthers && squarings >= 0 && !has_target;
    if constexpr (kOthers) {
      if (!powers) others_alone.add(others, size);
    }
    V teacher_sum[2] = {}, student_sum[2] = {}, diff_sum[2] = {}, power_sum[2] = {};
    ExactAccumulator<V> mass_in = mass[0], mass_out = mass[1];  // in registers
    alignas(64) T found_s[kTile + kWidth<T>], found_u[kTile + kWidth<T>];
    T *next_s = found_s, *next_u = found_u;
    std::int64_t inside = 0;
    for (std::int64_t k = 0; k < size; k += kWidth<T>) {
      const MaskOf<V> in = r[k] >= high;
      const unsigned in_bits = compare_bits(r[k], high);
      MaskOf<V> not_out = in;
      unsigned not_out_bits = in_bits;
      if (kMass != MassFrom::kKnownCut) {
        not_out = r[k] >= low;
        not_out_bits = compare_bits(r[k], low);
        next_s = append_lanes(s[k], not_out_bits & ~in_bits, next_s);
        next_u = append_lanes(u[k], not_out_bits & ~in_bits, next_u);
      }
      const V a = load<V>(exp_teacher + k), b = load<V>(exp_student + k), x = load<V>(diff + k);
      inside += __builtin_popcount(in_bits);
      if constexpr (kMass == MassFrom::kTeacherTerm || kMass == MassFrom::kRank) {
        const V weight =
            kMass == MassFrom::kTeacherTerm ? a : rule->weight(by_student ? s[k] : u[k]);
        mass_in.add(weight, in, in_bits);
        mass_out.add(weight, !not_out, ~not_out_bits);
      }
      if constexpr (kMass != MassFrom::kTeacherTerm) {
        teacher_sum[0] += pick(in, a, zero);
        teacher_sum[1] += pick(not_out, zero, a);
      }
      student_sum[0] += pick(in, b, zero);
      student_sum[1] += pick(not_out, zero, b);
      diff_sum[0] += pick(in, x, zero);
      diff_sum[1] += pick(not_out, zero, x);
      if (powers) {  // undecided classes too: nothing else counts them
        const V power = repeated_square(b, squarings);
        power_sum[0] += pick(in, power, zero);
        power_sum[1] += pick(in, zero, power);
      }
    }
    mass[0] = mass_in;
    mass[1] = mass_out;
    for (int g = 0; g < 2; ++g) {
      sum_teacher[g].add(teacher_sum[g]);
      sum_student[g].add(student_sum[g]);
      sum_diff[g].add(diff_sum[g]);
      if (kOthers) sum_powers[g].add(power_sum[g]);
    }
    if (next_s != found_s) {
      undecided->s.insert(undecided->s.end(), found_s, next_s);
      undecided->u.insert(undecided->u.end(), found_u, next_u);
    }
    // Padding has the ranking logit -inf, which is in the group where every class is.
    if (window.high == -kInfinity<T>) inside = size;
    count[0] += inside;
    count[1] += size - inside - (next_s - found_s);
  }

  RowSums result() const {
    RowSums result;
    for (int g = 0; g < 2; ++g) {
      result.mass[g] = mass[g].sum();
      result.group[g].sum_teacher =
          kMass == MassFrom::kTeacherTerm ? result.mass[g] : sum_teacher[g].sum();
      result.group[g].sum_student = sum_student[g].sum();
      result.group[g].sum_diff = sum_diff[g].sum();
      result.group[g].count = count[g];
    }
    result.others = others_alone.result();
    for (int g = 0; g < 2 && squarings >= 0; ++g) {
      result.others.merge({shift[g].student, sum_powers[g].sum()}, others_alone.scale);
    }
    return result;
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
