// The pass that makes a row's moments where the arithmetic is in float: a thread owns whole vectors
// (vectors.cuh), and both groups have one pair of shifts, the row's (vector_row.cuh), so that sums
// of threads and blocks are added as they are.
//
// A group far under the row's largest logit has no digits relative to that shift:
// sums_are_accurate() decides, and such a row is summed again with a shift per group
// (block/moments.cuh).
//
// Which thread reads a class does not depend on whether it is the target. The loops leave out the
// target's vector and the segment's last one if it is not whole; their classes are visited after
// the loops, one by each of the first threads.
#pragma once

#include "cuda/block/cross_entropy.cuh"
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

/// A thread's part of the row's extremes; kOthers: with those of all classes but the target.
template <bool kOthers, class Loader>
__device__ RowExtremes thread_row_extremes(const Loader& loader, int classes,
                                           const VectorRange& range) {
  Extremes<float> r = vector_extremes<true, kOthers>(ranking(loader), classes, range);
  float other = other_high<kOthers>(loader, classes, range);
  const float others = loader.by_student ? r.high : other;
  if (kOthers && range.target_class >= 0) {
    const float x = load_as<float>(ranking(loader)[range.target_class]);
    r = {fmaxf(r.high, x), fminf(r.low, x)};
    other = fmaxf(other, load_as<float>(not_ranking(loader)[range.target_class]));
  }
  return {loader.by_student ? other : r.high, loader.by_student ? r.high : other, r.low, others};
}

/// Sums of both groups. Groups are chosen by factors of 0 and 1: branches would keep the
/// classes of a vector from overlapping.
struct VectorSums {
  float teacher[2] = {0, 0}, student[2] = {0, 0}, diff[2] = {0, 0};
  float count = 0;   ///< of the primary group
  float others = 0;  ///< cross-entropy's, of all classes but the target

  __device__ __forceinline__ void merge(const VectorSums& y) {
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      teacher[g] += y.teacher[g];
      student[g] += y.student[g];
      diff[g] += y.diff[g];
    }
    count += y.count;
    others += y.others;
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
template <bool kFromGap, bool kCrossEntropy, class Loader>
__device__ VectorSums thread_vector_moments(const Loader& loader, int classes, const VectorRow& row,
                                            const VectorRange& range, const VectorHead& head) {
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
    for (int i = 0; i < kN; ++i) {
      sums.add<kFromGap>(row, o[i], r[i], r[i], row.cut);
      if constexpr (kCrossEntropy) {
        sums.others += head.exponential(loader.by_student ? r[i] : o[i]);
      }
    }
  }
  if (const int j = range.left_out<Elem>(classes); j >= 0) {
    const float r = load_as<float>(rank[j]), o = load_as<float>(not_ranking(loader)[j]);
    const bool in = in_primary(r, row.cut, j, range.target_class);
    sums.add<kFromGap>(row, o, r, in ? 1.0f : 0.0f, 1);
    if (kCrossEntropy && j != range.target_class) {
      sums.others += head.exponential(loader.by_student ? r : o);
    }
  }
  if (loader.by_student) sums.swap();
  return sums;
}

/// A segment's sums relative to the row's shift: A, B and X of both groups, the number of classes
/// in the primary one, and cross-entropy's sum.
struct PlainSums {
  static constexpr int kSums = 8, kOthers = 7;
  double sum[kSums];

  PlainSums() = default;
  __device__ explicit PlainSums(const VectorSums& s)
      : sum{s.teacher[0], s.teacher[1], s.student[0], s.student[1],
            s.diff[0],    s.diff[1],    s.count,      s.others} {}

  __device__ __forceinline__ void merge(const PlainSums& y) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) sum[k] += y.sum[k];
  }
};

/// accumulate_moments() over vectors, for every thread. A warp's sums are added in float.
template <bool kCrossEntropy, class Loader>
__device__ PlainSums vector_moments(const Loader& loader, int classes, const VectorRow& row,
                                    const VectorRange& range, const VectorHead& head,
                                    VectorSums* of_warps) {
  const VectorRow by_rank = loader.by_student ? row.swapped() : row;
  const VectorSums thread =
      row.from_gap()
          ? thread_vector_moments<true, kCrossEntropy>(loader, classes, by_rank, range, head)
          : thread_vector_moments<false, kCrossEntropy>(loader, classes, by_rank, range, head);
  return reduce_block<PlainSums>(thread, of_warps);
}

/// A warp adds the sums of a row's segments, in an order that their number alone decides.
template <bool kGlobal>
__device__ void add_sums(const Gathered<PlainSums, kGlobal>& segments, int count,
                         RowExtremes maxima, std::int64_t classes, SegmentMoments* row) {
  // 8 lanes for each of 4 subsets of the segments; lane l has sum l % 8.
  static_assert(PlainSums::kSums == 8);
  const int lane = threadIdx.x, index = lane % 8;
  double sum = 0;
  for (int r = lane / 8; r < count; r += kWarp / 8) {
    sum += segments.template part<double>(r, index);
  }
  sum += __shfl_xor_sync(~0u, sum, 8);
  sum += __shfl_xor_sync(~0u, sum, 16);
  GroupMoments<double>& group = row->group[index % 2];
  if (lane < 2) group.sum_teacher = sum, group.shift = {maxima.teacher, maxima.student};
  if (lane == 2 || lane == 3) group.sum_student = sum;
  if (lane == 4 || lane == 5) group.sum_diff = sum;
  if (lane == 6) {
    row->group[0].count = static_cast<long long>(sum);
    row->group[1].count = classes - static_cast<long long>(sum);
    row->invalid = 0;  // a NaN makes the sums NaN
  }
  __syncwarp();  // every lane reads the moments
}

/// A warp adds cross-entropy's sums of a row's segments, in an order that their number alone
/// decides. Valid in lane 0.
template <bool kGlobal>
__device__ OtherSum add_others(const Gathered<PlainSums, kGlobal>& segments, int count,
                               const VectorHead& head) {
  double sum = 0;
  for (int r = threadIdx.x % kWarp; r < count; r += kWarp) {
    sum += segments.template part<double>(r, PlainSums::kOthers);
  }
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return {head.high(), sum};
}

}  // namespace gkd::cuda
