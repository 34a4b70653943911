// The passes that make a row's moments and gradient where the arithmetic is in float: a thread owns
// whole vectors (vectors.cuh), and both groups have one pair of shifts, the row's (vector_row.cuh),
// so that sums of threads and blocks are added as they are.
//
// A group far under the row's largest logit has no digits relative to that shift:
// sums_are_accurate() decides, and such a row is summed again with a shift per group
// (block/moments.cuh).
//
// Which thread reads a class does not depend on whether it is the target. The loops leave out the
// target's vector and the segment's last one if it is not whole; their classes are visited after
// the loops, one by each of the first threads.
#pragma once

#include "cuda/block/moments.cuh"
#include "cuda/fused/block_group.cuh"
#include "cuda/fused/vector_select.cuh"

namespace gkd::cuda {

/// The least sum that a group may have relative to the row's shift, 2^-31: the exponents of the
/// classes that matter are then above -32, where a float rounds them to 2^-20.
constexpr float kLeastSum = 5e-10f;

/// Whether each group that has classes has sums of at least kLeastSum. NaN sums are not accurate.
__device__ __forceinline__ bool sums_are_accurate(const GroupCoef<float> (&coef)[2],
                                                  std::int64_t size, std::int64_t classes) {
  const auto accurate = [](float inverse) { return inverse > 0 && inverse <= 1 / kLeastSum; };
  const auto group = [&](const GroupCoef<float>& c) {
    return accurate(c.inv_sum_teacher) && accurate(c.inv_sum_student);
  };
  return (size == 0 || group(coef[0])) && (size == classes || group(coef[1]));
}

/// What the loops over a segment's vectors leave out.
struct VectorRange {
  int whole;   ///< vectors of which every element is a class
  int target;  ///< the whole vector that has the target; -1: none
  int target_class;

  template <class Elem>
  __device__ static VectorRange of(int classes, std::int64_t target) {
    VectorRange range{classes / kPerVector<Elem>, -1, -1};
    if (target < 0 || target >= classes) return range;
    range.target_class = static_cast<int>(target);
    if (range.target_class / kPerVector<Elem> < range.whole) {
      range.target = range.target_class / kPerVector<Elem>;
    }
    return range;
  }
  /// The class that this thread visits after the loop, or -1.
  template <class Elem>
  __device__ int left_out(int classes) const {
    constexpr int kN = kPerVector<Elem>;
    const int thread = threadIdx.x;
    if (thread < kN) return target < 0 ? -1 : target * kN + thread;
    const int j = whole * kN + thread - kN;
    return thread < 2 * kN && j < classes ? j : -1;
  }
};

/// Sums of both groups. Groups are chosen by factors of 0 and 1: branches would keep the
/// classes of a vector from overlapping.
struct VectorSums {
  float teacher[2] = {0, 0}, student[2] = {0, 0}, diff[2] = {0, 0};
  float count = 0;  ///< of the primary group

  __device__ __forceinline__ void merge(const VectorSums& y) {
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      teacher[g] += y.teacher[g];
      student[g] += y.student[g];
      diff[g] += y.diff[g];
    }
    count += y.count;
  }

  /// Student and teacher change places.
  __device__ __forceinline__ void swap() {
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const float x = teacher[g];
      teacher[g] = student[g];
      student[g] = x;
      diff[g] = -diff[g];
    }
  }
  /// A class of the primary group if rank >= cut.
  template <bool kFromGap>
  __device__ __forceinline__ void add(const VectorRow& row, float s, float u, float rank,
                                      float cut) {
    const float x = row.teacher_exponent(u), y = row.student_exponent(s);
    const float a = exp2_approx(x), b = exp2_approx(y);
    const float e = row.log_ratio<kFromGap>(s, u, y, x, 0);
    // NaN (-inf in both) has the plain difference, which is 0.
    const float d = if_within(e, 0.375f, a * short_expm1(e), b - a);
    const float inside = rank >= cut ? 1.0f : 0.0f, outside = 1 - inside;
    teacher[0] = fmaf(a, inside, teacher[0]);
    teacher[1] = fmaf(a, outside, teacher[1]);
    student[0] = fmaf(b, inside, student[0]);
    student[1] = fmaf(b, outside, student[1]);
    diff[0] = fmaf(d, inside, diff[0]);
    diff[1] = fmaf(d, outside, diff[1]);
    count += inside;
  }
};

/// Where the student ranks, the two change places: `row` is swapped() then, and so are the sums.
template <bool kFromGap, class Loader>
__device__ VectorSums thread_vector_moments(const Loader& loader, int classes, const VectorRow& row,
                                            const VectorRange& range) {
  using Elem = typename Loader::Element;
  constexpr int kN = kPerVector<Elem>;
  const Elem* rank = ranking(loader);
  auto others = other_vectors(loader, range.whole);
  VectorSums sums;
  for (int v = threadIdx.x; v < range.whole; v += kFusedThreads) {
    float r[kN], o[kN];
    unpack<Elem>(others.take(v), o);
    if (v == range.target) continue;
    load_vector(rank, v, r);
#pragma unroll
    for (int i = 0; i < kN; ++i) sums.add<kFromGap>(row, o[i], r[i], r[i], row.cut);
  }
  if (const int j = range.left_out<Elem>(classes); j >= 0) {
    const float r = load_as<float>(rank[j]), o = load_as<float>(not_ranking(loader)[j]);
    const bool in = in_primary(r, row.cut, j, range.target_class);
    sums.add<kFromGap>(row, o, r, in ? 1.0f : 0.0f, 1);
  }
  if (loader.by_student) sums.swap();
  return sums;
}

/// A segment's sums relative to the row's shift: A, B and X of both groups, and the number of
/// classes in the primary one.
struct PlainSums {
  double sum[7];

  PlainSums() = default;
  __device__ explicit PlainSums(const VectorSums& s)
      : sum{s.teacher[0], s.teacher[1], s.student[0], s.student[1], s.diff[0], s.diff[1], s.count} {
  }

  __device__ __forceinline__ void merge(const PlainSums& y) {
#pragma unroll
    for (int k = 0; k < 7; ++k) sum[k] += y.sum[k];
  }
};

/// accumulate_moments() over vectors, for every thread. A warp's sums are added in float.
template <class Loader>
__device__ PlainSums vector_moments(const Loader& loader, int classes, const VectorRow& row,
                                    const VectorRange& range, VectorSums* of_warps) {
  const VectorRow by_rank = loader.by_student ? row.swapped() : row;
  const VectorSums thread = row.from_gap()
                                ? thread_vector_moments<true>(loader, classes, by_rank, range)
                                : thread_vector_moments<false>(loader, classes, by_rank, range);
  return reduce_block<PlainSums>(thread, of_warps);
}

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
template <bool kFromGap, bool kRestKl>
struct VectorGradient {
  VectorRow row;
  VectorCoef primary, rest;
  float rest_student;    ///< without kRestKl: the gradient of a class of the rest is this times b_j
  float kl[2] = {0, 0};  ///< sums of a_j phi(d_j)

  /// A class's gradient, and a_j phi(d_j) in two factors.
  struct Result {
    float gradient, mass, phi;
  };
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
            value[i] = result.gradient;
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
      if (gradient != nullptr) store_as(result.gradient, gradient + j);
    }
  }
};

/// write_gradient() over vectors, for every thread. `gradient` is the segment's, or null.
template <class Loader, class Elem>
__device__ SegmentKl vector_gradient(const Loader& loader, int classes, const VectorRow& row,
                                     const VectorRange& range, const RowState<float>& state,
                                     const std::int64_t (&group_classes)[2], bool all_kl,
                                     Elem* gradient, SegmentKl* of_warps) {
  const GroupCoef<float> primary = state.coef[0], rest = state.coef[1];
  float kl[2];
  const auto run = [&](auto from_gap, auto rest_kl) {
    VectorGradient<from_gap(), rest_kl()> pass{row, VectorCoef(primary, group_classes[0]),
                                               VectorCoef(rest, group_classes[1]),
                                               rest.coef_q * rest.inv_sum_student};
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
