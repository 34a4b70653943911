// The two sweeps that do arithmetic: sums of each group, then loss and gradient.
//
// A pack whose classes all lie outside a group that carries no KL costs one exponential, and the
// loss alone nothing.
// A template header, because row.cpp compiles it once per instruction set.
#pragma once

#include "cpu/masses.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// Ranking logits from `high` up are in the group, those under `low` are not, and those between are
/// open: the sums leave them out and list them. high == low: the cut is known.
template <class T>
struct LogitRange {
  T high, low;
};

/// What the sums need a mass for.
enum class MassFrom { kNothing, kTeacherTerm, kRank };

/// Gathers a segment's sums block by block.
template <class T, MassFrom kMass>
struct Summer {
  using V = VecOf<T>;
  LogitRange<T> window;
  Shift<T> shift[2];
  T inv_t;
  MassRule<T> rule;
  bool rank_is_student;
  Lanes<V> a[2], b[2], x[2];
  Sums sums;

  /// Classes [0, count) of a block; `open` receives at + k for each class k in the window.
  template <class B>
  void add(B s, B u, B r, std::int64_t count, std::uint32_t at, std::vector<std::uint32_t>* open) {
    const V high = splat<V>(window.high), low = splat<V>(window.low), zero{};
    const V in_u = splat<V>(shift[0].teacher), in_s = splat<V>(shift[0].student);
    const V out_u = splat<V>(shift[1].teacher), out_s = splat<V>(shift[1].student);
    V sum_a[2] = {}, sum_b[2] = {}, sum_x[2] = {};
    MassSum<V> mass;
    std::int64_t inside = 0, between = 0;
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      const V student = s[k], teacher = u[k], rank = r[k];
      const MaskOf<V> in = rank >= high;
      const Shift<V> at_ref{kMass == MassFrom::kTeacherTerm ? in_u : (in ? in_u : out_u),
                            in ? in_s : out_s};
      Terms<V> t = class_terms(student, teacher, at_ref, inv_t);
      if constexpr (kMass == MassFrom::kTeacherTerm) {
        mass.add(t.exp_teacher, in, rule);
      } else if constexpr (kMass == MassFrom::kRank) {
        mass.add(rule.weight(rank_is_student ? student : teacher), in, rule);
      }
      const unsigned in_bits = movemask(in);
      const MaskOf<V> not_under = rank >= low;
      unsigned open_bits = movemask(not_under) & ~in_bits;
      if (open_bits != 0) {
        const MaskOf<V> between_edges = not_under ^ in;
        between += __builtin_popcount(open_bits);
        t.exp_teacher = between_edges ? zero : t.exp_teacher;
        t.exp_student = between_edges ? zero : t.exp_student;
        t.diff = between_edges ? zero : t.diff;
        for (; open_bits != 0; open_bits &= open_bits - 1) {
          open->push_back(at + static_cast<std::uint32_t>(k + __builtin_ctz(open_bits)));
        }
      }
      sum_a[0] += in ? t.exp_teacher : zero;
      sum_b[0] += in ? t.exp_student : zero;
      sum_x[0] += in ? t.diff : zero;
      sum_a[1] += in ? zero : t.exp_teacher;
      sum_b[1] += in ? zero : t.exp_student;
      sum_x[1] += in ? zero : t.diff;
      inside += __builtin_popcount(in_bits);
    }
    for (int g = 0; g < 2; ++g) {
      a[g].add(sum_a[g]);
      b[g].add(sum_b[g]);
      x[g].add(sum_x[g]);
    }
    // A padding lane ranks -inf: inside only where everything is.
    if (window.high == -kInfinity<T>) inside = count;
    sums.count[0] += inside;
    sums.count[1] += count - inside - between;
    if (kMass != MassFrom::kNothing) mass.flush(rule, &sums.mass_in, &sums.mass_total);
  }

  Sums result() const {
    Sums total = sums;
    for (int g = 0; g < 2; ++g) {
      total.sum_teacher[g] = a[g].sum();
      total.sum_student[g] = b[g].sum();
      total.sum_diff[g] = x[g].sum();
    }
    return total;
  }
};

template <class V, class T>
GroupCoef<V> splat_coef(const GroupCoef<T>& from) {
  GroupCoef<V> to;
  to.shift = {splat<V>(from.shift.teacher), splat<V>(from.shift.student)};
  to.inv_sum_teacher = splat<V>(from.inv_sum_teacher);
  to.inv_sum_student = splat<V>(from.inv_sum_student);
  to.log_ratio = splat<V>(from.log_ratio);
  to.coef_q = splat<V>(from.coef_q);
  to.coef_diff = splat<V>(from.coef_diff);
  return to;
}

/// Loss and gradient of classes [begin, end). kRest: the rest carries a KL.
template <bool kRest, bool kGradient, class T>
void write_class_gradients(const Row<T>& row, std::int64_t begin, std::int64_t end, T cut, T inv_t,
                           const GroupCoef<T> (&coef)[2], T scale, const GradientRow& gradient,
                           double (&kl)[2]) {
  using V = VecOf<T>;
  const GroupCoef<V> near = splat_coef<V>(coef[0]), far = splat_coef<V>(coef[1]);
  const V at_cut = splat<V>(cut), zero{};
  const V rest_scale = splat<V>(coef[1].coef_q * coef[1].inv_sum_student * scale);
  Lanes<V> sum[2];
  row.each_block(begin, end, [&](std::int64_t j, std::int64_t count, auto s, auto u, auto r) {
    alignas(64) T buffer[kBlock];
    T* out = kGradient ? writable(gradient, j, count, buffer) : nullptr;
    V block[2] = {};
    for (std::int64_t k = 0; k < count; k += kWidth<T>) {
      const V student = s[k];
      const MaskOf<V> in = r[k] >= at_cut;
      const unsigned bits = movemask(in);
      if (!kRest && bits == 0) {
        if (!kGradient) continue;
        store(V(exp_of(V((student - far.shift.student) * inv_t)) * rest_scale), out + k);
        continue;
      }
      GroupCoef<V> c = near;
      if (bits != kAllTrue<V>) {
        c.shift.teacher = in ? near.shift.teacher : far.shift.teacher;
        c.shift.student = in ? near.shift.student : far.shift.student;
        c.inv_sum_teacher = in ? near.inv_sum_teacher : far.inv_sum_teacher;
        c.inv_sum_student = in ? near.inv_sum_student : far.inv_sum_student;
        c.log_ratio = in ? near.log_ratio : far.log_ratio;
        c.coef_q = in ? near.coef_q : far.coef_q;
        c.coef_diff = in ? near.coef_diff : far.coef_diff;
      }
      const ClassTerms<V> t = class_kl(student, u[k], c, inv_t);
      block[0] += in ? t.kl : zero;
      if (kRest) block[1] += in ? zero : t.kl;
      if (kGradient) store(V(class_grad(t, c) * scale), out + k);
    }
    sum[0].add(block[0]);
    if (kRest) sum[1].add(block[1]);
    if (kGradient) write(gradient, j, count, out);
  });
  kl[0] = sum[0].sum();
  kl[1] = sum[1].sum();
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
