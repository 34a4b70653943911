// The student's sums over a segment's classes outside the group, in one pass.
//
// Every thread has its own largest logit, which its sums are relative to. At the end the block
// chooses its largest one, and the threads change their sums to it, so that the sums can be added.
#pragma once

#include "cuda/block/cross_entropy.cuh"

namespace gkd::cuda {

/// exp(offset factor) for offset <= 0: in float by the special function unit, to 2 ulp.
__device__ __forceinline__ float exp_of_rest(float offset, float factor) {
  return exp2_approx(offset * (factor * kLog2e));
}
__device__ __forceinline__ double exp_of_rest(double offset, double factor) {
  return exp_of(offset * factor);
}

/// Sums of exp((S_j - high)/T), and of exp(scale (S_j - high)) for cross-entropy.
struct RestSums {
  double student, others;
  int invalid;

  __device__ __forceinline__ void merge(const RestSums& y) {
    student += y.student;
    others += y.others;
    invalid |= y.invalid;
  }
};

template <class T, int kThreads>
struct RestStorage {
  union {
    typename cub::BlockReduce<T, kThreads>::TempStorage high;
    typename cub::BlockReduce<RestSums, kThreads>::TempStorage sums;
  };
  T common;
};

/// One thread's sums.
template <class T, bool kCrossEntropy>
struct ThreadRest {
  T inv_temperature, scale;
  T high = -std::numeric_limits<T>::infinity();
  RestSums sums{};

  /// Makes the sums relative to `next`, which is not below `high`.
  __device__ __forceinline__ void raise(T next) {
    if (next == high) return;  // also -inf, whose distance from itself is NaN
    sums.student *= static_cast<double>(exp_of_rest(high - next, inv_temperature));
    if constexpr (kCrossEntropy) {
      sums.others *= static_cast<double>(exp_of_rest(high - next, scale));
    }
    high = next;
  }
  /// Adds classes; those to leave out are -inf.
  template <int kN>
  __device__ __forceinline__ void add(const T (&s)[kN]) {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    T top = high;
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      sums.invalid |= !(s[k] < kInfinity);
      top = Largest()(top, s[k]);
    }
    raise(top);
    const T finite = finite_or_zero(high);
    T student = T(0), others = T(0);
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      student += exp_of_rest(s[k] - finite, inv_temperature);
      if constexpr (kCrossEntropy) others += exp_of_rest(s[k] - finite, scale);
    }
    sums.student += static_cast<double>(student);
    if constexpr (kCrossEntropy) sums.others += static_cast<double>(others);
  }
};

/// What the segments of a chunk pass on, beside moments[].group[0], and others[] of cross-entropy.
__host__ __device__ inline OtherSum* rest_of(void* scratch) {
  return static_cast<OtherSum*>(scratch);
}

/// A segment's rest: both sums with one `high`.
struct SegmentRest {
  OtherSum student, others;
  int invalid;
};

/// Of the block's threads; valid in thread 0.
template <class T, int kThreads, bool kCrossEntropy>
__device__ SegmentRest reduce_rest(ThreadRest<T, kCrossEntropy> rest,
                                   RestStorage<T, kThreads>& storage) {
  const T high = cub::BlockReduce<T, kThreads>(storage.high).Reduce(rest.high, Largest());
  if (threadIdx.x == 0) storage.common = high;
  __syncthreads();  // thread 0 has written the largest logit, and the reduction's memory is free
  rest.raise(storage.common);
  const RestSums sums =
      cub::BlockReduce<RestSums, kThreads>(storage.sums).Reduce(rest.sums, Merge{});
  const auto top = static_cast<double>(rest.high);
  return {{top, sums.student}, {top, sums.others}, sums.invalid};
}

/// A warp merges the rests of a row's segments and the teacher's number for all of them into the
/// moments of group 1, in an order that `count` alone decides. Valid in lane 0.
template <class Part>
__device__ GroupMoments<double> merge_rest(Part part, std::int64_t count, double teacher_rest,
                                           double inv_temperature,
                                           OthersReduce::TempStorage& storage) {
  const OtherSum student = merge_others(part, count, inv_temperature, storage);
  // The teacher's sum is 1 relative to a shift that is the stored number itself.
  const bool has_mass = teacher_rest > -std::numeric_limits<double>::infinity();
  GroupMoments<double> rest;
  rest.shift = {has_mass ? teacher_rest / inv_temperature : 0, finite_or_zero(student.high)};
  rest.sum_teacher = has_mass ? 1 : 0;
  rest.sum_student = student.sum;
  rest.sum_diff = rest.sum_student - rest.sum_teacher;
  return rest;
}

/// The gradient of classes outside the group. For the group's classes it is no number that means
/// anything.
template <class T, bool kCrossEntropy>
struct RestGradient {
  T factor, high, inv_temperature;
  CrossEntropyCoef<T> head;
  T scale;

  __device__ RestGradient(const GroupCoef<T>& rest, T inv_temperature,
                          const CrossEntropyCoef<T>& head, double scale)
      : factor(rest.coef_q * rest.inv_sum_student),
        high(rest.shift.student),
        inv_temperature(inv_temperature),
        head(head),
        scale(static_cast<T>(scale)) {}

  __device__ __forceinline__ T operator()(T s) const {
    T value = factor * exp_of_rest(s - high, inv_temperature);
    if constexpr (kCrossEntropy) value += head.factor * exp_of_rest(s - head.high, scale);
    return value;
  }
};

}  // namespace gkd::cuda
