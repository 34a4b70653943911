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
#include "cuda/fused/vector_select.cuh"

namespace gkd::cuda {

/// The least sum that a group may have relative to the row's shift: its terms then keep their
/// digits, since floats reach down to 1e-38.
constexpr float kLeastSum = 1e-20f;

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

/// A thread's sums of both groups. Groups are chosen by factors of 0 and 1: branches would keep the
/// classes of a vector from overlapping.
struct VectorSums {
  float teacher[2] = {0, 0}, student[2] = {0, 0}, diff[2] = {0, 0};
  float count = 0;  ///< of the primary group

  /// A class of the primary group if rank >= cut.
  template <bool kFromGap>
  __device__ __forceinline__ void add(const VectorRow& row, float s, float u, float rank,
                                      float cut) {
    const float x = row.teacher_exponent(u), y = row.student_exponent(s);
    const float a = exp2_approx(x), b = exp2_approx(y);
    const float e = row.log_ratio<kFromGap>(s, u, y, x, 0);
    // NaN (-inf in both) has the plain difference, which is 0.
    const float d = if_short(e, a * short_expm1(e), b - a);
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

template <bool kFromGap, class Elem>
__device__ VectorSums thread_vector_moments(const ContiguousLoader<float, Elem>& loader,
                                            int classes, const VectorRow& row,
                                            const VectorRange& range) {
  constexpr int kN = kPerVector<Elem>;
  VectorSums sums;
#pragma unroll 1
  for (int v = threadIdx.x; v < range.whole; v += kFusedThreads) {
    if (v == range.target) continue;
    float s[kN], u[kN], r[kN];
    load_vector(loader.student, v, s);
    load_vector(loader.teacher, v, u);
    load_vector(ranking(loader), v, r);
#pragma unroll
    for (int i = 0; i < kN; ++i) sums.add<kFromGap>(row, s[i], u[i], r[i], row.cut);
  }
  if (const int j = range.left_out<Elem>(classes); j >= 0) {
    float s, u;
    loader.load(j, &s, &u);
    const bool in = in_primary(loader.by_student ? s : u, row.cut, j, range.target_class);
    sums.add<kFromGap>(row, s, u, in ? 1.0f : 0.0f, 1);
  }
  return sums;
}

/// accumulate_moments() over vectors; valid in thread 0.
template <class Elem>
__device__ SegmentMoments
vector_moments(const ContiguousLoader<float, Elem>& loader, int classes, const VectorRow& row,
               const VectorRange& range,
               typename cub::BlockReduce<MomentSums, kFusedThreads>::TempStorage& storage) {
  const VectorSums thread = row.from_gap()
                                ? thread_vector_moments<true>(loader, classes, row, range)
                                : thread_vector_moments<false>(loader, classes, row, range);
  MomentSums sums{};
  for (int g = 0; g < 2; ++g) {
    sums.sum_teacher[g] = thread.teacher[g];
    sums.sum_student[g] = thread.student[g];
    sums.sum_diff[g] = thread.diff[g];
  }
  sums.count[0] = static_cast<long long>(thread.count);
  sums = cub::BlockReduce<MomentSums, kFusedThreads>(storage).Reduce(sums, Merge{});
  SegmentMoments result;
  for (int g = 0; g < 2; ++g) {
    result.group[g].shift = {row.teacher_zero, row.student_zero};
    result.group[g].sum_teacher = sums.sum_teacher[g];
    result.group[g].sum_student = sums.sum_student[g];
    result.group[g].sum_diff = sums.sum_diff[g];
    result.group[g].count = g == 0 ? sums.count[0] : classes - sums.count[0];
  }
  return result;
}

/// A group's constants of the gradient pass, for terms that are multiplied by A: a_j = A p^_j.
struct VectorCoef {
  float log_ratio;    ///< d_j = e_j + log_ratio
  float sum_ratio;    ///< A/B
  float coef_teacher; ///< gradient = coef_teacher a_j + coef_diff (A/B b_j - a_j)
  float coef_diff;

  __device__ explicit VectorCoef(const GroupCoef<float>& c)
      : log_ratio(c.log_ratio),
        sum_ratio(c.inv_sum_teacher > 0 ? c.inv_sum_student / c.inv_sum_teacher : 0),
        coef_teacher(c.coef_q * c.inv_sum_teacher),
        coef_diff((c.coef_q + c.coef_diff) * c.inv_sum_teacher) {}
};

/// A thread's part of the gradient pass.
struct VectorGradient {
  VectorRow row;
  VectorCoef primary, rest;
  float rest_student;  ///< the gradient of a class outside where the rest has no KL is this times b
  float kl[2] = {0, 0};  ///< sums of a_j phi(d_j)

  __device__ __forceinline__ void add_kl(float term, bool in) {
    kl[0] += in ? term : 0.0f;
    kl[1] += in ? 0.0f : term;
  }
  __device__ __forceinline__ float outside(float s) const {
    return rest_student * exp2_approx(row.student_exponent(s));
  }
  /// Where |d_j| <= 2 in the whole warp.
  __device__ __forceinline__ float near(float u, float d, bool in) {
    const float a = exp2_approx(row.teacher_exponent(u));
    const float phi = long_phi(d), expm1 = phi - d;
    add_kl(a * phi, in);
    return a * fmaf(in ? primary.coef_diff : rest.coef_diff, expm1,
                    in ? primary.coef_teacher : rest.coef_teacher);
  }
  __device__ __forceinline__ float any(float s, float u, float d, bool in) {
    const float a = exp2_approx(row.teacher_exponent(u));
    const float b = exp2_approx(row.student_exponent(s));
    const float phi = short_phi(d);
    const float diff =
        if_short(d, a * (phi - d), fmaf(b, in ? primary.sum_ratio : rest.sum_ratio, -a));
    // Without mass there is no term: d is infinite or NaN where a logit is -inf.
    const float term = if_short(d, a * phi, fmaf(a, a > 0 ? d : 0.0f, diff));
    add_kl(term, in);
    return fmaf(in ? primary.coef_diff : rest.coef_diff, diff,
                (in ? primary.coef_teacher : rest.coef_teacher) * a);
  }
  template <bool kFromGap>
  __device__ __forceinline__ float ratio(float s, float u, bool in) const {
    const float y = row.student_exponent(s), x = row.teacher_exponent(u);
    return row.log_ratio<kFromGap>(s, u, y, x, in ? primary.log_ratio : rest.log_ratio);
  }
};

template <bool kFromGap, class Elem>
__device__ void thread_vector_gradient(const ContiguousLoader<float, Elem>& loader, int classes,
                                       const VectorRange& range, bool rest_kl, Elem* gradient,
                                       VectorGradient& pass) {
  constexpr int kN = kPerVector<Elem>;
  const Elem* rank = ranking(loader);
  const float cut = pass.row.cut;
  const auto alignment =
      static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(gradient) % kVectorBytes);
  // Every lane of a warp takes part in its votes, with a vector of its own or the last one.
#pragma unroll 1
  for (int start = threadIdx.x / kWarp * kWarp; start < range.whole; start += kFusedThreads) {
    const int lane_vector = start + threadIdx.x % kWarp;
    const bool mine = lane_vector < range.whole && lane_vector != range.target;
    const int v = min(lane_vector, range.whole - 1);
    float s[kN], r[kN], value[kN];
    load_vector(loader.student, v, s);
    load_vector(rank, v, r);
    float highest = r[0];
#pragma unroll
    for (int i = 1; i < kN; ++i) highest = fmaxf(highest, r[i]);
    if (!rest_kl && !__any_sync(~0u, highest >= cut)) {
#pragma unroll
      for (int i = 0; i < kN; ++i) value[i] = pass.outside(s[i]);
    } else {
      float u[kN], d[kN];
      load_vector(loader.teacher, v, u);
      bool is_near = true;
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        d[i] = pass.template ratio<kFromGap>(s[i], u[i], r[i] >= cut);
        is_near &= fabsf(d[i]) <= 2;
      }
      const float before[2] = {pass.kl[0], pass.kl[1]};
      if (__all_sync(~0u, is_near)) {
#pragma unroll
        for (int i = 0; i < kN; ++i) value[i] = pass.near(u[i], d[i], r[i] >= cut);
      } else {
#pragma unroll
        for (int i = 0; i < kN; ++i) value[i] = pass.any(s[i], u[i], d[i], r[i] >= cut);
      }
      if (!mine) {
        pass.kl[0] = before[0];
        pass.kl[1] = before[1];
      }
    }
    if (mine && gradient != nullptr) store_vector(value, gradient + v * kN, alignment);
  }
  if (const int j = range.left_out<Elem>(classes); j >= 0) {
    float s, u;
    loader.load(j, &s, &u);
    const bool in = in_primary(loader.by_student ? s : u, cut, j, range.target_class);
    const float value = !in && !rest_kl
                            ? pass.outside(s)
                            : pass.any(s, u, pass.template ratio<kFromGap>(s, u, in), in);
    if (gradient != nullptr) store_as(value, gradient + j);
  }
}

/// write_gradient() over vectors; valid in thread 0. `gradient` is the segment's, or null.
template <class Elem>
__device__ SegmentKl vector_gradient(const ContiguousLoader<float, Elem>& loader, int classes,
                                     const VectorRow& row, const VectorRange& range,
                                     const RowState<float>& state, bool all_kl, Elem* gradient,
                                     KlStorage<kFusedThreads>& storage) {
  const GroupCoef<float> rest = state.coef[1];
  VectorGradient pass{row, VectorCoef(state.coef[0]), VectorCoef(rest),
                      rest.coef_q * rest.inv_sum_student};
  const bool rest_kl = all_kl || rest.coef_diff != 0;
  if (row.from_gap()) {
    thread_vector_gradient<true>(loader, classes, range, rest_kl, gradient, pass);
  } else {
    thread_vector_gradient<false>(loader, classes, range, rest_kl, gradient, pass);
  }
  const SegmentKl sum{
      {static_cast<double>(pass.kl[0]) * static_cast<double>(state.coef[0].inv_sum_teacher),
       static_cast<double>(pass.kl[1]) * static_cast<double>(rest.inv_sum_teacher)}};
  return cub::BlockReduce<SegmentKl, kFusedThreads>(storage).Reduce(sum, Merge{});
}

}  // namespace gkd::cuda
