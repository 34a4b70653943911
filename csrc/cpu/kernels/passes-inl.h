// The two passes that do arithmetic: the moments of each group, then loss and gradient.
//
// Vectors entirely outside the group need one exp() when secondary_weight is 0, and none without a
// gradient.
#pragma once

#include "cpu/kernels/fixed_point-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

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
      Terms<V> t = class_terms(student, teacher, lane_shift, inv_t);
      if constexpr (kMass == MassFrom::kTeacherTerm) {
        mass.add(t.exp_teacher, in, rule);
      } else if constexpr (kMass == MassFrom::kRank) {
        mass.add(rule.weight(by_student ? student : teacher), in, rule);
      }
      const unsigned in_bits = movemask(in);
      const MaskOf<V> not_under = rank >= low;
      unsigned window_bits = movemask(not_under) & ~in_bits;
      if (window_bits != 0) {
        const MaskOf<V> in_between = not_under ^ in;
        undecided += __builtin_popcount(window_bits);
        t.exp_teacher = in_between ? zero : t.exp_teacher;
        t.exp_student = in_between ? zero : t.exp_student;
        t.diff = in_between ? zero : t.diff;
        for (; window_bits != 0; window_bits &= window_bits - 1) {
          in_window->push_back(first_class +
                               static_cast<std::uint32_t>(k + __builtin_ctz(window_bits)));
        }
      }
      tile_teacher[0] += in ? t.exp_teacher : zero;
      tile_student[0] += in ? t.exp_student : zero;
      tile_diff[0] += in ? t.diff : zero;
      tile_teacher[1] += in ? zero : t.exp_teacher;
      tile_student[1] += in ? zero : t.exp_student;
      tile_diff[1] += in ? zero : t.diff;
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
      result.group[g].shift = {shift[g].teacher, shift[g].student};
      result.group[g].sum_teacher = sum_teacher[g].sum();
      result.group[g].sum_student = sum_student[g].sum();
      result.group[g].sum_diff = sum_diff[g].sum();
    }
    return result;
  }
};

template <class V, class T>
GroupCoef<V> splat_coef(const GroupCoef<T>& c) {
  GroupCoef<V> v;
  v.shift = {splat<V>(c.shift.teacher), splat<V>(c.shift.student)};
  v.inv_sum_teacher = splat<V>(c.inv_sum_teacher);
  v.inv_sum_student = splat<V>(c.inv_sum_student);
  v.log_ratio = splat<V>(c.log_ratio);
  v.coef_q = splat<V>(c.coef_q);
  v.coef_diff = splat<V>(c.coef_diff);
  return v;
}

/// x where `mask` is true, else y.
template <class V>
GroupCoef<V> blend(MaskOf<V> mask, const GroupCoef<V>& x, const GroupCoef<V>& y) {
  GroupCoef<V> c;
  c.shift.teacher = mask ? x.shift.teacher : y.shift.teacher;
  c.shift.student = mask ? x.shift.student : y.shift.student;
  c.inv_sum_teacher = mask ? x.inv_sum_teacher : y.inv_sum_teacher;
  c.inv_sum_student = mask ? x.inv_sum_student : y.inv_sum_student;
  c.log_ratio = mask ? x.log_ratio : y.log_ratio;
  c.coef_q = mask ? x.coef_q : y.coef_q;
  c.coef_diff = mask ? x.coef_diff : y.coef_diff;
  return c;
}

/// Loss and gradient of classes [begin, end). kRest: the rest has a KL of weight other than 0.
template <bool kRest, bool kGradient, class T>
void write_class_gradients(const Row<T>& row, std::int64_t begin, std::int64_t end, T cut, T inv_t,
                           const GroupCoef<T> (&coef)[2], T scale, const GradientRow& gradient,
                           double (&kl)[2]) {
  using V = VecOf<T>;
  const GroupCoef<V> primary = splat_coef<V>(coef[0]), rest = splat_coef<V>(coef[1]);
  const V cut_vector = splat<V>(cut), zero{};
  const V rest_scale = splat<V>(coef[1].coef_q * coef[1].inv_sum_student * scale);
  DoubleAccumulator<V> sum[2];
  row.for_each_tile(begin, end, [&](std::int64_t j, std::int64_t count, auto s, auto u, auto r) {
    alignas(64) T buffer[kTile];
    T* out = kGradient ? writable_tile(gradient, j, count, buffer) : nullptr;
    V tile_kl[2] = {};
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      const V student = s[k];
      const MaskOf<V> in = r[k] >= cut_vector;
      const unsigned bits = movemask(in);
      if (!kRest && bits == 0) {
        if (!kGradient) continue;
        store(V(exp_of(V((student - rest.shift.student) * inv_t)) * rest_scale), out + k);
        continue;
      }
      GroupCoef<V> c = primary;
      if (bits != kAllTrue<V>) c = blend(in, primary, rest);
      const ClassTerms<V> t = class_kl(student, u[k], c, inv_t);
      tile_kl[0] += in ? t.kl : zero;
      if (kRest) tile_kl[1] += in ? zero : t.kl;
      if (kGradient) store(V(class_grad(t, c) * scale), out + k);
    }
    sum[0].add(tile_kl[0]);
    if (kRest) sum[1].add(tile_kl[1]);
    if (kGradient) write_tile(gradient, j, count, out);
  });
  kl[0] = sum[0].sum();
  kl[1] = sum[1].sum();
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
