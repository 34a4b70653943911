// A block's pass over a segment that sums both groups' moments (math/moments.h).
//
// Every thread has its own shift per group. At the end the block chooses one shift per group, and
// the threads change their sums to it, so that the sums can be added.
#pragma once

#include "cuda/block/passes.cuh"
#include "math/moments.h"

namespace gkd::cuda {

/// A thread's moments of one group: the exponentials have the arithmetic's type, the sums are
/// double.
template <class T>
using ThreadMoments = GroupMoments<double, T>;

/// Moves a group's shift to one that also serves the tile's items in `members`; bit k is item k.
/// The shift changes only when a tile raises it, a few times per segment.
template <class T>
__device__ __forceinline__ void raise_shift(const Tile<T>& tile, unsigned members,
                                            T inv_temperature, ThreadMoments<T>* m) {
  if (members == 0) return;
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  Shift<T> high{kNone, kNone};
  T max_student = kNone;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (!(members >> k & 1)) continue;
    if (tile.u[k] > high.teacher) high = {tile.u[k], tile.s[k]};
    max_student = tile.s[k] > max_student ? tile.s[k] : max_student;
  }
  Shift<T> shift = common_shift(m->shift, high, inv_temperature);
  if ((max_student - shift.student) * inv_temperature > T(kMaxStudentExponent)) {
    shift.student = max_student;
  }
  m->change_shift(shift, inv_temperature);
}

/// Adds a tile's classes to their groups: bits of `valid_mask` are classes, of `primary_mask` the
/// primary ones. Each class costs its exponentials once, with its group's shift.
template <class T>
__device__ __forceinline__ void add_tile(const Tile<T>& tile, unsigned primary_mask,
                                         unsigned valid_mask, T inv_temperature,
                                         ThreadMoments<T> (&m)[2]) {
  raise_shift(tile, primary_mask, inv_temperature, &m[0]);
  raise_shift(tile, valid_mask & ~primary_mask, inv_temperature, &m[1]);
  Shift<T> shift[2];
  for (int g = 0; g < 2; ++g) {
    shift[g] = {finite_or_zero(m[g].shift.teacher), finite_or_zero(m[g].shift.student)};
  }
  T sum_teacher[2] = {T(0), T(0)}, sum_student[2] = {T(0), T(0)}, sum_diff[2] = {T(0), T(0)};
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const bool in = primary_mask >> k & 1;
    const Shift<T> class_shift{in ? shift[0].teacher : shift[1].teacher,
                               in ? shift[0].student : shift[1].student};
    const Terms<T> t = class_terms(tile.s[k], tile.u[k], class_shift, inv_temperature);
    if (!(valid_mask >> k & 1)) continue;
    sum_teacher[0] += in ? t.exp_teacher : T(0);
    sum_student[0] += in ? t.exp_student : T(0);
    sum_diff[0] += in ? t.diff : T(0);
    sum_teacher[1] += in ? T(0) : t.exp_teacher;
    sum_student[1] += in ? T(0) : t.exp_student;
    sum_diff[1] += in ? T(0) : t.diff;
  }
  for (int g = 0; g < 2; ++g) {
    m[g].sum_teacher += static_cast<double>(sum_teacher[g]);
    m[g].sum_student += static_cast<double>(sum_student[g]);
    m[g].sum_diff += static_cast<double>(sum_diff[g]);
  }
  m[0].count += __popc(primary_mask);
  m[1].count += __popc(valid_mask & ~primary_mask);
}

/// A candidate for the block's shift of a group, and the group's largest student logit.
template <class T>
struct ShiftCandidate {
  Shift<T> shift;
  T max_student;

  __device__ __forceinline__ void merge(const ShiftCandidate& y) {
    shift = y.shift.teacher > shift.teacher ? y.shift : shift;
    max_student = y.max_student > max_student ? y.max_student : max_student;
  }
};

/// The sums of two groups, each with one shift for the whole block.
struct MomentSums {
  double sum_teacher[2], sum_student[2], sum_diff[2];
  long long count[2];
  int invalid;

  __device__ __forceinline__ void merge(const MomentSums& y) {
    for (int g = 0; g < 2; ++g) {
      sum_teacher[g] += y.sum_teacher[g];
      sum_student[g] += y.sum_student[g];
      sum_diff[g] += y.sum_diff[g];
      count[g] += y.count[g];
    }
    invalid |= y.invalid;
  }
};

template <class T, int kThreads>
struct MomentsStorage {
  union {
    typename cub::BlockReduce<ShiftCandidate<T>, kThreads>::TempStorage shift[2];
    typename cub::BlockReduce<MomentSums, kThreads>::TempStorage sums;
  };
  Shift<T> common[2];
};

/// Both groups' moments of a segment; valid in thread 0. `storage` is free for reuse afterwards.
template <class T, int kThreads, class Loader>
__device__ SegmentMoments accumulate_moments(const Loader& loader, Segment segment, T cut,
                                             std::int64_t target, T inv_temperature,
                                             MomentsStorage<T, kThreads>& storage) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  ThreadMoments<T> m[2];
  int invalid = 0;
  for_each_tile<T, kThreads>(loader, segment, [&](std::int64_t first, const Tile<T>& tile) {
    unsigned primary_mask = 0, valid_mask = 0;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const std::int64_t j = first + k * kThreads;
      if (j >= segment.end) continue;
      valid_mask |= 1u << k;
      invalid |= !(tile.s[k] < kInfinity) || !(tile.u[k] < kInfinity);
      const T rank = loader.by_student ? tile.s[k] : tile.u[k];
      if (in_primary(rank, cut, j, target)) primary_mask |= 1u << k;
    }
    add_tile(tile, primary_mask, valid_mask, inv_temperature, m);
  });

  for (int g = 0; g < 2; ++g) {
    const ShiftCandidate<T> highest =
        cub::BlockReduce<ShiftCandidate<T>, kThreads>(storage.shift[g])
            .Reduce({m[g].shift, m[g].shift.student}, Merge{});
    if (threadIdx.x == 0) {
      const bool overflows =
          (highest.max_student - highest.shift.student) * inv_temperature > T(kMaxStudentExponent);
      storage.common[g] = {highest.shift.teacher,
                           overflows ? highest.max_student : highest.shift.student};
    }
  }
  __syncthreads();  // thread 0 has written the common shifts, and the reductions' memory is free
  MomentSums thread_sums{};
  thread_sums.invalid = invalid;
  for (int g = 0; g < 2; ++g) {
    m[g].change_shift(storage.common[g], inv_temperature);
    thread_sums.sum_teacher[g] = m[g].sum_teacher;
    thread_sums.sum_student[g] = m[g].sum_student;
    thread_sums.sum_diff[g] = m[g].sum_diff;
    thread_sums.count[g] = m[g].count;
  }
  const MomentSums sums =
      cub::BlockReduce<MomentSums, kThreads>(storage.sums).Reduce(thread_sums, Merge{});
  SegmentMoments result;
  if (threadIdx.x == 0) {
    for (int g = 0; g < 2; ++g) {
      result.group[g].shift = {static_cast<double>(storage.common[g].teacher),
                               static_cast<double>(storage.common[g].student)};
      result.group[g].sum_teacher = sums.sum_teacher[g];
      result.group[g].sum_student = sums.sum_student[g];
      result.group[g].sum_diff = sums.sum_diff[g];
      result.group[g].count = sums.count[g];
    }
    result.invalid = sums.invalid;
  }
  __syncthreads();  // thread 0 has read the storage before it is reused
  return result;
}

}  // namespace gkd::cuda
