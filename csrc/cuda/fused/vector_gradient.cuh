// The pass that makes a row's gradient and the KL of its groups where the arithmetic is in float,
// over the vectors and with the shifts of vector_moments.cuh.
#pragma once

#include "cuda/fused/vector_moments.cuh"

namespace gkd::cuda {

/// A group's constants of the gradient pass, for terms that are multiplied by A: a_j = A p^_j.
struct VectorCoef {
  float log_ratio;     ///< d_j = e_j + log_ratio
  float sum_ratio;     ///< A/B
  float coef_teacher;  ///< gradient = coef_teacher a_j + coef_diff (A/B b_j - a_j)
  float coef_diff;

  /// A group of one class has q^ = p^ = 1: no difference, however d_j is rounded.
  __device__ VectorCoef(const GroupCoef<float>& c, std::int64_t classes)
      : log_ratio(c.log_ratio),
        sum_ratio(c.inv_sum_teacher > 0 ? c.inv_sum_student / c.inv_sum_teacher : 0),
        coef_teacher(c.coef_q * c.inv_sum_teacher),
        coef_diff(classes == 1 ? 0 : (c.coef_q + c.coef_diff) * c.inv_sum_teacher) {}
};

/// A thread's part of the gradient pass. kRestKl: the rest has a KL.
template <bool kFromGap, bool kRestKl, bool kCrossEntropy>
struct VectorGradient {
  VectorRow row;
  VectorCoef primary, rest;
  float rest_student;  ///< without kRestKl: the gradient of a class of the rest is this times b_j
  VectorHead head;
  float kl[2] = {0, 0};  ///< sums of a_j phi(d_j)

  /// A class's gradient, and a_j phi(d_j) in two factors.
  struct Result {
    float gradient, mass, phi;
  };
  /// With cross-entropy's part, for every class but the target.
  __device__ __forceinline__ float with_head(float gradient, float s) const {
    if constexpr (!kCrossEntropy) return gradient;
    return fmaf(head.factor, head.exponential(s), gradient);
  }
  /// d_j
  __device__ __forceinline__ float ratio(float s, float u, bool in) const {
    const float y = row.student_exponent(s), x = row.teacher_exponent(u);
    return row.log_ratio<kFromGap>(s, u, y, x, in ? primary.log_ratio : rest.log_ratio);
  }
  /// Without kRestKl, where no class of the warp's vectors is in the primary group.
  __device__ __forceinline__ Result outside(float s) const {
    return {rest_student * exp2_approx(row.student_exponent(s)), 0, 0};
  }
  /// Where |d_j| <= kLongPhi in the warp's vectors.
  __device__ __forceinline__ Result near(float u, float d, bool in) const {
    const float a = exp2_approx(row.teacher_exponent(u));
    const float phi = long_phi(d), expm1 = phi - d;
    return {a * fmaf(in ? primary.coef_diff : rest.coef_diff, expm1,
                     in ? primary.coef_teacher : rest.coef_teacher),
            a, phi};
  }
  __device__ __forceinline__ Result any(float s, float u, float d, bool in) const {
    const float a = exp2_approx(row.teacher_exponent(u));
    const float b = exp2_approx(row.student_exponent(s));
    const float phi = short_phi(d);
    const float diff =
        if_within(d, 0.5f, a * (phi - d), fmaf(b, in ? primary.sum_ratio : rest.sum_ratio, -a));
    // Without mass there is no term: d is infinite or NaN where a logit is -inf.
    const float term = if_within(d, 0.5f, a * phi, fmaf(a, a > 0 ? d : 0.0f, diff));
    return {fmaf(in ? primary.coef_diff : rest.coef_diff, diff,
                 (in ? primary.coef_teacher : rest.coef_teacher) * a),
            term, 1};
  }

  /// `gradient` is the segment's, or null.
  template <class Loader, class Elem>
  __device__ void run(const Loader& loader, int classes, const VectorRange& range, Elem* gradient) {
    // A warp reads kTile x 32 consecutive vectors: each lane kItems classes. Every lane takes part
    // in the votes, with vectors of its own or with the last one.
    constexpr int kN = kPerVector<Elem>, kTile = kItems / kN;
    const Elem* rank = ranking(loader);
    const VectorStore<Elem> store(gradient);
    for (int start = threadIdx.x / kWarp * kWarp * kTile; start < range.whole;
         start += kFusedThreads * kTile) {
      float s[kTile][kN], r[kTile][kN];
      int v[kTile];
      VectorExtremes<Elem> extremes;
#pragma unroll
      for (int t = 0; t < kTile; ++t) {
        v[t] = start + t * kWarp + threadIdx.x % kWarp;
        load_vector(loader.student, min(v[t], range.whole - 1), s[t]);
        const uint4 vector = read_vector(rank, min(v[t], range.whole - 1));
        unpack<Elem>(vector, r[t]);
        extremes.add_to_high(vector);
      }
      const auto finish = [&](auto result_of) {
#pragma unroll
        for (int t = 0; t < kTile; ++t) {
          float value[kN], sum[2] = {0, 0};
#pragma unroll
          for (int i = 0; i < kN; ++i) {
            const bool in = r[t][i] >= row.cut;
            const Result result = result_of(t, i, in);
            value[i] = with_head(result.gradient, s[t][i]);
            sum[0] = fmaf(in ? result.mass : 0.0f, result.phi, sum[0]);
            if constexpr (kRestKl) sum[1] = fmaf(in ? 0.0f : result.mass, result.phi, sum[1]);
          }
          const bool mine = v[t] < range.whole && v[t] != range.target;
          kl[0] += mine ? sum[0] : 0.0f;
          if constexpr (kRestKl) kl[1] += mine ? sum[1] : 0.0f;
          if (mine) store(value, v[t]);
        }
      };
      if (!kRestKl && !__any_sync(~0u, extremes.high() >= row.cut)) {
        finish([&](int t, int i, bool) { return outside(s[t][i]); });
        continue;
      }
      float u[kTile][kN], d[kTile][kN];
      bool is_near = true;
#pragma unroll
      for (int t = 0; t < kTile; ++t) {
        load_vector(loader.teacher, min(v[t], range.whole - 1), u[t]);
#pragma unroll
        for (int i = 0; i < kN; ++i) {
          d[t][i] = ratio(s[t][i], u[t][i], r[t][i] >= row.cut);
          is_near &= fabsf(d[t][i]) <= kLongPhi;
        }
      }
      if (__all_sync(~0u, is_near)) {
        finish([&](int t, int i, bool in) { return near(u[t][i], d[t][i], in); });
      } else {
        finish([&](int t, int i, bool in) { return any(s[t][i], u[t][i], d[t][i], in); });
      }
    }
    if (const int j = range.left_out<Elem>(classes); j >= 0) {
      float s, u;
      loader.load(j, &s, &u);
      const bool in = in_primary(loader.by_student ? s : u, row.cut, j, range.target_class);
      const Result result = kRestKl || in ? any(s, u, ratio(s, u, in), in) : outside(s);
      kl[in ? 0 : 1] += result.mass * result.phi;
      const bool is_target = kCrossEntropy && j == range.target_class;
      const float value = is_target ? result.gradient + head.target : with_head(result.gradient, s);
      if (gradient != nullptr) store_as(value, gradient + j);
    }
  }
};

/// write_gradient() over vectors, for every thread. `gradient` is the segment's, or null.
template <bool kCrossEntropy, class Loader, class Elem>
__device__ SegmentKl vector_gradient(const Loader& loader, int classes, const VectorRow& row,
                                     const VectorRange& range, const RowState<float>& state,
                                     const std::int64_t (&group_classes)[2], bool all_kl,
                                     const VectorHead& head, Elem* gradient, SegmentKl* of_warps) {
  const GroupCoef<float> primary = state.coef[0], rest = state.coef[1];
  float kl[2];
  const auto run = [&](auto from_gap, auto rest_kl) {
    VectorGradient<from_gap(), rest_kl(), kCrossEntropy> pass{
        row.anew(state.cut), VectorCoef(primary, group_classes[0]),
        VectorCoef(rest, group_classes[1]), rest.coef_q * rest.inv_sum_student, head};
    with_inputs(loader, [&](const auto& inputs) { pass.run(inputs, classes, range, gradient); });
    kl[0] = pass.kl[0];
    kl[1] = pass.kl[1];
  };
  const auto with_rest = [&](auto from_gap) {
    if (all_kl || rest.coef_diff != 0) {
      run(from_gap, std::true_type{});
    } else {
      run(from_gap, std::false_type{});
    }
  };
  if (row.from_gap()) {
    with_rest(std::true_type{});
  } else {
    with_rest(std::false_type{});
  }
  const auto normalized = [&](int g) {
    const double inverse = static_cast<double>(state.coef[g].inv_sum_teacher);
    return group_classes[g] == 1 ? 0 : static_cast<double>(kl[g]) * inverse;
  };
  return reduce_block(SegmentKl{{normalized(0), normalized(1)}}, of_warps);
}

}  // namespace gkd::cuda
