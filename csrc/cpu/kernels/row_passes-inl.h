// The passes over a row whose cut is known, or over one shard of it: moments of each group, loss
// and gradient.
#pragma once

#include "cpu/kernels/row_moments-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

template <class T>
struct RowPasses : RowMoments<T> {
  using Moments = RowMoments<T>;
  using Moments::inv_t, Moments::row, Moments::scratch, Moments::task, Moments::with_cross_entropy;
  using Moments::Moments;

  /// A tile of the kept a_j, padded with 0.
  const T* kept_tile(std::int64_t begin, std::int64_t count, T* buffer) const {
    const T* tile =
        read_tile<T>({task.gradient.data, 1, task.gradient.dtype}, begin, count, buffer);
    if (tile == buffer) std::fill(buffer + count, buffer + padded<T>(count), T(0));
    return tile;
  }

  /// The target's logit with its margin, as cross-entropy sees it. In double: both networks' margin
  /// may be in the row already, rounded to T.
  double target_logit() const {
    const LogitsRow stored{task.student.data, task.student.stride, task.student.dtype};
    return read_one<double>(stored, task.target) - task.margin;
  }

  /// Gradient and each group's KL, from the moments of the two groups of the whole row and from its
  /// cross-entropy.
  RowSummary write_gradient(T cut, const GroupMoments<double>* moments, const HeadOfRow& head,
                            double* kl) {
    GroupCoef<T> coef[2];
    const RowSummary summary = row_coefficients(moments, task.weights, coef);
    const double weight = task.weights.cross_entropy * task.weights.scale * task.gradient_scale;
    const auto others = head.cross_entropy.template coefficients<double>(head.high, weight);
    const bool rest = summary.kl_weight[1] != 0;
    const auto write = [&](auto gradient, auto how, const OtherPowers<T>& powers) {
      rest ? write_class_gradients<true, gradient.value, how.value>(cut, coef, others, powers)
           : write_class_gradients<false, gradient.value, how.value>(cut, coef, others, powers);
    };
    if (!task.gradient.data) {
      write(std::false_type(), Constant<Others::kNone>(), {});
    } else if (!with_cross_entropy) {
      write(std::true_type(), Constant<Others::kNone>(), {});
    } else if (const OtherPowers<T> powers(moments, task.weights, others); powers.squarings >= 0) {
      write(std::true_type(), Constant<Others::kPower>(), powers);
    } else {
      write(std::true_type(), Constant<Others::kExp>(), powers);
    }
    kl[0] = kl[1] = 0;
    for (std::int64_t k = 0; k < row.segments(); ++k) {
      kl[0] += scratch->segments[k].kl[0];
      kl[1] += scratch->segments[k].kl[1];
    }
    return summary;
  }

  /// kRest: the rest has a KL of weight other than 0. Otherwise vectors entirely outside the group
  /// need one exp(), and none without a gradient.
  template <bool kRest, bool kGradient, Others kOthers>
  void write_class_gradients(T cut, const GroupCoef<T> (&coef)[2],
                             const CrossEntropyCoef<double>& cross_entropy,
                             const OtherPowers<T>& of_powers) {
    using V = VecOf<T>;
    Moments::for_each_segment([&](Segment& segment, std::int64_t begin, std::int64_t end) {
      // Local to the segment, so that the compiler keeps them in registers.
      const auto splat_field = [](T x) { return splat<V>(x); };
      const GroupCoef<V> primary = map_fields<V>(splat_field, coef[0]);
      const GroupCoef<V> rest = map_fields<V>(splat_field, coef[1]);
      const T inv_t = this->inv_t, scale = static_cast<T>(task.gradient_scale);
      const V cut_vector = splat<V>(cut), zero{};
      const V rest_scale = splat<V>(coef[1].coef_q * coef[1].inv_sum_student * scale);
      const NearGradient<T> near(coef, inv_t, scale);
      const V in_gap = splat<V>(near.gap[0]), out_gap = splat<V>(near.gap[1]);
      const V in_log = primary.log_ratio, out_log = rest.log_ratio;
      const V in_p = splat<V>(near.of_p[0]), out_p = splat<V>(near.of_p[1]);
      const V in_diff = splat<V>(near.of_diff[0]), out_diff = splat<V>(near.of_diff[1]);
      const GradientRow gradient = task.gradient;
      DoubleAccumulator<V> sum[2];
      const bool kept = this->kept;
      const OtherTerms<T> other_terms{static_cast<T>(cross_entropy.high),
                                      static_cast<T>(task.weights.scale)};
      const V other_factor = splat<V>(static_cast<T>(cross_entropy.factor));
      const OtherPowers<T> powers = of_powers;
      const V in_q = splat<V>(powers.of_q[0]), out_q = splat<V>(powers.of_q[1]);
      const V rest_factor =
          splat<V>(coef[1].coef_q * coef[1].inv_sum_student * powers.of_rest * scale);
      row.for_each_tile(
          begin, end, [&](std::int64_t j, std::int64_t count, auto s, auto u, auto r, auto others) {
            alignas(64) T buffer[kTile], kept_buffer[kTile];
            // In the target's tile the target is left out, which `others` does.
            const bool near_powers = kOthers == Others::kPower && !row.has_target(j, count);
            const T* known = kept ? kept_tile(j, count, kept_buffer) : nullptr;
            T* out = kGradient ? writable_tile(gradient, j, count, buffer) : nullptr;
            V tile_kl[2] = {}, near_kl[2] = {};
            const auto write = [&](V value, std::int64_t k) {
              if (kOthers != Others::kNone) value += other_terms.of(others[k]) * other_factor;
              store(value, out + k);
            };
            for (std::int64_t k = 0; k < count; k += kWidth<T>) {
              const V student = s[k];
              const MaskOf<V> in = r[k] >= cut_vector;
              const unsigned bits = compare_bits(r[k], cut_vector);
              if (!kRest && bits == 0) {
                if (!kGradient) continue;
                if (kOthers == Others::kPower) {  // no target: it is in the group
                  const V b = exp_of(V((student - other_terms.high) * inv_t));
                  const V power = repeated_square(b, powers.squarings);
                  store(V(b * rest_factor + power * other_factor), out + k);
                  continue;
                }
                write(exp_of(V((student - rest.shift.student) * inv_t)) * rest_scale, k);
                continue;
              }
              const V teacher = u[k];
              const Shift<V> shift{in ? primary.shift.teacher : rest.shift.teacher,
                                   in ? primary.shift.student : rest.shift.student};
              const V ratio = near.log_ratio(student, teacher, shift, in ? in_gap : out_gap);
              if (near.holds(ratio)) {
                const V a = known ? load<V>(known + k) : near.exp_teacher(teacher, shift.teacher);
                const WideTerms<V> x = wide_terms(V(ratio * inv_t + (in ? in_log : out_log)));
                const V kl = a * x.phi;
                near_kl[0] += in ? kl : zero;
                if (kRest) near_kl[1] += in ? zero : kl;
                if (!kGradient) continue;
                V value = a * ((in ? in_p : out_p) + (in ? in_diff : out_diff) * x.expm1);
                if (near_powers) {
                  value += repeated_square(V(a * x.exp), powers.squarings) * (in ? in_q : out_q);
                  store(value, out + k);
                } else {
                  write(value, k);
                }
                continue;
              }
              GroupCoef<V> c = primary;
              if (bits != kAllTrue<V>) {
                c = map_fields<V>([in](V x, V y) { return in ? x : y; }, primary, rest);
              }
              const V a = known ? load<V>(known + k) : exp_of(V((teacher - shift.teacher) * inv_t));
              const ClassTerms<V> t = class_kl(student, teacher, c, inv_t, a);
              tile_kl[0] += in ? t.kl : zero;
              if (kRest) tile_kl[1] += in ? zero : t.kl;
              if (kGradient) write(class_grad(t, c) * scale, k);
            }
            sum[0].add(tile_kl[0] + near_kl[0] * primary.inv_sum_teacher);
            if (kRest) sum[1].add(tile_kl[1] + near_kl[1] * rest.inv_sum_teacher);
            if (kOthers != Others::kNone && row.has_target(j, count)) {
              out[row.target - j] += static_cast<T>(cross_entropy.target);
            }
            if (kGradient) write_tile(gradient, j, count, out);
          });
      for (int g = 0; g < 2; ++g) segment.kl[g] = sum[g].sum();
    });
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
