// The passes over a segment in shared memory where the arithmetic is in float: a thread owns whole
// vectors (vectors.cuh), and both groups have one shift, the row's largest logits, so that sums of
// threads and blocks are added as they are.
//
// A group far under the row's largest logit has no digits relative to that shift:
// sums_are_accurate() decides, and such a row is summed again with a shift per group
// (block/moments.cuh).
#pragma once

#include "cuda/block/histogram.cuh"
#include "cuda/block/moments.cuh"
#include "cuda/fused/vectors.cuh"

namespace gkd::cuda {

/// The row's largest logits: the shift of both groups. A NaN is skipped here; it makes the sums
/// NaN, so that they are not accurate.
struct RowMaxima {
  float teacher = -std::numeric_limits<float>::infinity();
  float student = -std::numeric_limits<float>::infinity();

  __device__ __forceinline__ void merge(const RowMaxima& y) {
    teacher = fmaxf(teacher, y.teacher);
    student = fmaxf(student, y.student);
  }
  __device__ bool are_finite() const { return isfinite(teacher) && isfinite(student); }
};

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

template <class Elem>
__device__ __forceinline__ const Elem* ranking(const ContiguousLoader<float, Elem>& loader) {
  return loader.by_student ? loader.student : loader.teacher;
}

template <class Elem>
__device__ RowMaxima vector_maxima(const ContiguousLoader<float, Elem>& loader, int classes) {
  RowMaxima m;
  const int vectors = num_vectors<Elem>(classes);
  for (int v = threadIdx.x; v < vectors; v += kFusedThreads) {
    float s[kPerVector<Elem>], u[kPerVector<Elem>];
    load_vector(loader.student, v, s);
    load_vector(loader.teacher, v, u);
#pragma unroll
    for (int i = 0; i < kPerVector<Elem>; ++i) m.merge({u[i], s[i]});
  }
  return m;
}

/// count_segment() over vectors: -inf falls into the last bin, which is not counted.
template <class Elem>
__device__ void count_vectors(const ContiguousLoader<float, Elem>& loader, int classes,
                              const Bins<float>& bins, int* counts) {
  const Elem* rank = ranking(loader);
  const int vectors = num_vectors<Elem>(classes);
  for (int v = threadIdx.x; v < vectors; v += kFusedThreads) {
    float r[kPerVector<Elem>];
    load_vector(rank, v, r);
#pragma unroll
    for (int i = 0; i < kPerVector<Elem>; ++i) {
      const float position = bins.position(r[i]);
      if (position < float(kBins - 1)) atomicAdd(&counts[static_cast<int>(position)], 1);
    }
  }
}

/// weigh_segment() over vectors, by mass: -inf weighs nothing.
template <class Elem>
__device__ WeightSums<float> weigh_vectors(const ContiguousLoader<float, Elem>& loader, int classes,
                                           const Bins<float>& bins, ClassWeight<float> weight,
                                           const Keys<float>& keys, BinRange window, unsigned* list,
                                           int* num_listed) {
  weight.by_mass = true;  // no branch per class
  const Elem* rank = ranking(loader);
  const int vectors = num_vectors<Elem>(classes);
  // bin < first and bin <= last as comparisons of positions; a NaN is in the last bin.
  const float first = static_cast<float>(window.first), end = static_cast<float>(window.last + 1);
  const bool to_last_bin = window.last == kBins - 1;
  WeightSums<float> sums;
  for (int v = threadIdx.x; v < vectors; v += kFusedThreads) {
    float r[kPerVector<Elem>];
    load_vector(rank, v, r);
    unsigned in_window = 0;
#pragma unroll
    for (int i = 0; i < kPerVector<Elem>; ++i) {
      const float position = bins.position(r[i]);
      const unsigned long long w = weight.of(r[i]);
      const bool above = position < first;
      sums.total += w;
      sums.above += above ? w : 0;
      if (!above && (position < end || to_last_bin)) in_window |= 1u << i;
    }
    if (in_window == 0) continue;
#pragma unroll
    for (int i = 0; i < kPerVector<Elem>; ++i) {
      if (!(in_window >> i & 1) || v * kPerVector<Elem> + i >= classes) continue;
      const unsigned key = keys.of(r[i]);
      sums.high = max(sums.high, key);
      sums.low = min(sums.low, key);
      const int index = atomicAdd(num_listed, 1);
      if (index < kFusedListedKeys) list[index] = key;
    }
  }
  return sums;
}

/// 2^x; results that are not normal numbers are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// exp(-d) - 1 and exp(-d) - 1 + d for |d| <= 1/2: the last term is 3e-8 of the sum.
__device__ __forceinline__ Expm1Phi<float> short_expm1_and_phi(float d) {
  const float phi = d * d * alternating_series<2, 8>(d);
  return {phi - d, phi};
}

/// A row's constants in registers.
struct VectorRow {
  RowMaxima shift;
  float inv_temperature, exp2_scale, gap, cut;
  int target_vector, target_item;

  __device__ VectorRow(RowMaxima shift, float inv_temperature, float cut, std::int64_t target,
                       int classes, int per_vector)
      : shift(shift),
        inv_temperature(inv_temperature),
        exp2_scale(inv_temperature * 1.44269504f),
        gap(shift.teacher - shift.student),
        cut(cut) {
    const bool here = target >= 0 && target < classes;
    target_vector = here ? static_cast<int>(target) / per_vector : -1;
    target_item = here ? static_cast<int>(target) % per_vector : -1;
  }
  __device__ __forceinline__ float exp_teacher(float u) const {
    return exp2_approx((u - shift.teacher) * exp2_scale);
  }
  __device__ __forceinline__ float exp_student(float s) const {
    return exp2_approx((s - shift.student) * exp2_scale);
  }
  /// T e_j. As class_log_ratio() chooses, but once for the row.
  template <bool kFromGap>
  __device__ __forceinline__ float offset(float s, float u) const {
    return kFromGap ? (u - s) - gap : (u - shift.teacher) - (s - shift.student);
  }
  __device__ bool from_gap() const { return fabsf(gap) * inv_temperature <= 4; }

  /// Bit i: item i of vector v is in the primary group.
  template <int kItemsOfVector>
  __device__ __forceinline__ unsigned primary(int v, const float (&r)[kItemsOfVector]) const {
    unsigned mask = 0;
#pragma unroll
    for (int i = 0; i < kItemsOfVector; ++i) mask |= r[i] >= cut ? 1u << i : 0u;
    return v == target_vector ? mask | 1u << target_item : mask;
  }
};

/// A thread's sums of both groups.
template <bool kFromGap, class Elem>
__device__ MomentSums thread_vector_moments(const ContiguousLoader<float, Elem>& loader,
                                            int classes, const VectorRow& row) {
  constexpr int kN = kPerVector<Elem>;
  const Elem* rank = ranking(loader);
  const int vectors = num_vectors<Elem>(classes);
  MomentSums sums{};
  int inside = 0;
  for (int v = threadIdx.x; v < vectors; v += kFusedThreads) {
    float s[kN], u[kN], r[kN];
    load_vector(loader.student, v, s);
    load_vector(loader.teacher, v, u);
    load_vector(rank, v, r);
    unsigned mask = row.primary(v, r);
    if (v == vectors - 1)
      mask &= (1u << (classes - v * kN)) - 1;  // -inf is not below a cut of -inf
    inside += __popc(mask);
    float a[2] = {0, 0}, b[2] = {0, 0}, x[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float in = mask >> i & 1 ? 1.0f : 0.0f, out = 1.0f - in;
      const float teacher = row.exp_teacher(u[i]);
      const float e = row.offset<kFromGap>(s[i], u[i]) * row.inv_temperature;
      const float series = teacher * short_expm1_and_phi(e).expm1;
      const float plain = row.exp_student(s[i]);
      const bool use_series = fabsf(e) <= 0.5f;  // false for NaN, -inf in both: the difference is 0
      const float diff = use_series ? series : plain - teacher;
      const float student = use_series ? teacher + series : plain;
      a[0] += teacher * in;
      a[1] += teacher * out;
      b[0] += student * in;
      b[1] += student * out;
      x[0] += diff * in;
      x[1] += diff * out;
    }
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      sums.sum_teacher[g] += static_cast<double>(a[g]);
      sums.sum_student[g] += static_cast<double>(b[g]);
      sums.sum_diff[g] += static_cast<double>(x[g]);
    }
  }
  sums.count[0] = inside;
  return sums;
}

/// accumulate_moments() over vectors; valid in thread 0.
template <class Elem>
__device__ SegmentMoments
vector_moments(const ContiguousLoader<float, Elem>& loader, int classes, const VectorRow& row,
               typename cub::BlockReduce<MomentSums, kFusedThreads>::TempStorage& storage) {
  const MomentSums thread_sums = row.from_gap()
                                     ? thread_vector_moments<true>(loader, classes, row)
                                     : thread_vector_moments<false>(loader, classes, row);
  const MomentSums sums =
      cub::BlockReduce<MomentSums, kFusedThreads>(storage).Reduce(thread_sums, Merge{});
  SegmentMoments result;
  for (int g = 0; g < 2; ++g) {
    result.group[g].shift = {row.shift.teacher, row.shift.student};
    result.group[g].sum_teacher = sums.sum_teacher[g];
    result.group[g].sum_student = sums.sum_student[g];
    result.group[g].sum_diff = sums.sum_diff[g];
    result.group[g].count = g == 0 ? sums.count[0] : classes - sums.count[0];
  }
  return result;
}

/// A thread's part of write_gradient() over vectors; `gradient` is the segment's, or null. The KL
/// sums are those of the thread.
template <bool kFromGap, class Elem>
__device__ SegmentKl thread_vector_gradient(const ContiguousLoader<float, Elem>& loader,
                                            int classes, const VectorRow& row,
                                            const GroupCoef<float>& primary,
                                            const GroupCoef<float>& rest, bool rest_kl,
                                            Elem* gradient) {
  constexpr int kN = kPerVector<Elem>;
  const Elem* rank = ranking(loader);
  const int vectors = num_vectors<Elem>(classes);
  SegmentKl sum{};
  for (int v = threadIdx.x; v < vectors; v += kFusedThreads) {
    float s[kN], u[kN], r[kN], value[kN];
    load_vector(loader.student, v, s);
    load_vector(rank, v, r);
    const unsigned mask = row.primary(v, r);
    if (mask == 0 && !rest_kl) {
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        value[i] = rest.coef_q * (row.exp_student(s[i]) * rest.inv_sum_student);
      }
    } else {
      load_vector(loader.teacher, v, u);
      float kl[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const bool in = mask >> i & 1;
        const float p =
            row.exp_teacher(u[i]) * (in ? primary.inv_sum_teacher : rest.inv_sum_teacher);
        const float q =
            row.exp_student(s[i]) * (in ? primary.inv_sum_student : rest.inv_sum_student);
        const float d = row.offset<kFromGap>(s[i], u[i]) * row.inv_temperature +
                        (in ? primary.log_ratio : rest.log_ratio);
        const Expm1Phi<float> series = short_expm1_and_phi(d);
        const bool use_series = fabsf(d) <= 0.5f;
        const float diff = use_series ? p * series.expm1 : q - p;
        const float term = use_series ? p * series.phi : diff + (p == 0 ? 0.0f : p * d);
        if (in) {
          kl[0] += term;
        } else {
          kl[1] += term;
        }
        value[i] = (in ? primary.coef_q : rest.coef_q) * (p + diff) +
                   (in ? primary.coef_diff : rest.coef_diff) * diff;
      }
      sum.group[0] += static_cast<double>(kl[0]);
      sum.group[1] += static_cast<double>(kl[1]);
    }
    if (gradient != nullptr) {
      store_vector(value, min(kN, classes - v * kN), gradient + v * kN);
    }
  }
  return sum;
}

/// write_gradient() over vectors; valid in thread 0.
template <class Elem>
__device__ SegmentKl vector_gradient(const ContiguousLoader<float, Elem>& loader, int classes,
                                     const VectorRow& row, const RowState<float>& state,
                                     bool all_kl, Elem* gradient,
                                     KlStorage<kFusedThreads>& storage) {
  const GroupCoef<float> primary = state.coef[0], rest = state.coef[1];  // in registers
  const bool rest_kl = all_kl || rest.coef_diff != 0;
  const SegmentKl sum =
      row.from_gap()
          ? thread_vector_gradient<true>(loader, classes, row, primary, rest, rest_kl, gradient)
          : thread_vector_gradient<false>(loader, classes, row, primary, rest, rest_kl, gradient);
  return cub::BlockReduce<SegmentKl, kFusedThreads>(storage).Reduce(sum, Merge{});
}

}  // namespace gkd::cuda
