// The two sweeps that a block makes over a slice of a row once the cut is known: one that
// summarises both groups, one that emits the gradient and sums each group's KL. `Source` says where
// logits come from (row.cuh); nothing here knows how many blocks share the row.
#pragma once

#include <cub/block/block_reduce.cuh>

#include "cuda/cub.h"
#include "cuda/row.cuh"
#include "cuda/tuning.h"
#include "math/cut.h"
#include "math/moments.h"

namespace gkd::cuda {

/// A slice [begin, end) of one row.
struct Slice {
  std::int64_t begin, end;
};

/// Classes that one thread holds at once, kThreads apart.
template <class T>
struct Tile {
  T s[kItems], u[kItems];
};

/// Calls visit(first, tile): item k is class first + k * kThreads, past the slice's end where
/// `first + k * kThreads >= slice.end`; such an item holds -inf, which adds nothing to any sum.
template <class T, int kThreads, class Source, class Visit>
__device__ __forceinline__ void sweep(const Source& source, Slice slice, Visit visit) {
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  for (std::int64_t first = slice.begin + threadIdx.x; first < slice.end;
       first += kItems * kThreads) {
    Tile<T> tile;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      tile.s[k] = tile.u[k] = kNone;
      const std::int64_t j = first + k * kThreads;
      if (j < slice.end) source.load(j, &tile.s[k], &tile.u[k]);
    }
    visit(first, tile);
  }
}

/// A thread's summary of one group: float exponentials for float rows, sums in double.
template <class T>
using ThreadMoments = GroupMoments<double, T>;

/// Moves a group's reference to one that serves `members` of a tile too; bit k is item k. That is
/// needed only when a tile raises it, a few times per slice.
template <class T>
__device__ __forceinline__ void raise_reference(const Tile<T>& tile, unsigned members,
                                                T inv_temperature, ThreadMoments<T>* m) {
  if (members == 0) return;
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  Shift<T> high{kNone, kNone};
  T top = kNone;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (!(members >> k & 1)) continue;
    if (tile.u[k] > high.teacher) high = {tile.u[k], tile.s[k]};
    top = tile.s[k] > top ? tile.s[k] : top;
  }
  Shift<T> shift = common_shift(m->shift, high, inv_temperature);
  if ((top - shift.student) * inv_temperature > T(kMaxStudentExponent)) shift.student = top;
  m->change_shift(shift, inv_temperature);
}

/// Adds a tile's classes to their groups: bits of `held` are classes, of `inside` the primary ones.
/// Each class costs its own exponentials once, against its group's reference.
template <class T>
__device__ __forceinline__ void push_tile(const Tile<T>& tile, unsigned inside, unsigned held,
                                          T inv_temperature, ThreadMoments<T> (&m)[2]) {
  raise_reference(tile, inside, inv_temperature, &m[0]);
  raise_reference(tile, held & ~inside, inv_temperature, &m[1]);
  Shift<T> shift[2];
  for (int g = 0; g < 2; ++g) {
    shift[g] = {finite_or_zero(m[g].shift.teacher), finite_or_zero(m[g].shift.student)};
  }
  T a[2] = {T(0), T(0)}, b[2] = {T(0), T(0)}, x[2] = {T(0), T(0)};
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const bool in = inside >> k & 1;
    const Shift<T> own{in ? shift[0].teacher : shift[1].teacher,
                       in ? shift[0].student : shift[1].student};
    const Terms<T> t = class_terms(tile.s[k], tile.u[k], own, inv_temperature);
    if (!(held >> k & 1)) continue;
    a[0] += in ? t.exp_teacher : T(0);
    b[0] += in ? t.exp_student : T(0);
    x[0] += in ? t.diff : T(0);
    a[1] += in ? T(0) : t.exp_teacher;
    b[1] += in ? T(0) : t.exp_student;
    x[1] += in ? T(0) : t.diff;
  }
  for (int g = 0; g < 2; ++g) {
    m[g].sum_teacher += static_cast<double>(a[g]);
    m[g].sum_student += static_cast<double>(b[g]);
    m[g].sum_diff += static_cast<double>(x[g]);
  }
  m[0].count += __popc(inside);
  m[1].count += __popc(held & ~inside);
}

/// What a reference reduction carries: the group's largest student logit besides.
template <class T>
struct ReferenceTop {
  Shift<T> shift;
  T top;
};

struct HigherTeacher {
  template <class T>
  __device__ __forceinline__ ReferenceTop<T> operator()(const ReferenceTop<T>& x,
                                                        const ReferenceTop<T>& y) const {
    return {y.shift.teacher > x.shift.teacher ? y.shift : x.shift, y.top > x.top ? y.top : x.top};
  }
};

/// The plain sums of two groups against one reference each.
struct MomentSums {
  double sum_teacher[2], sum_student[2], sum_diff[2];
  long long count[2];
  int bad;
};

struct AddSums {
  __device__ __forceinline__ MomentSums operator()(MomentSums x, const MomentSums& y) const {
    for (int g = 0; g < 2; ++g) {
      x.sum_teacher[g] += y.sum_teacher[g];
      x.sum_student[g] += y.sum_student[g];
      x.sum_diff[g] += y.sum_diff[g];
      x.count[g] += y.count[g];
    }
    x.bad |= y.bad;
    return x;
  }
};

/// Shared memory of the summarising sweep.
template <class T, int kThreads>
struct MomentsStorage {
  union {
    typename cub::BlockReduce<ReferenceTop<T>, kThreads>::TempStorage reference[2];
    typename cub::BlockReduce<MomentSums, kThreads>::TempStorage sums;
  };
  Shift<T> common[2];
};

/// Both groups' summaries of a slice; valid in thread 0. Leaves `storage` free for use.
template <class T, int kThreads, class Source>
__device__ PartMoments summarise_slice(const Source& source, Slice slice, T cut,
                                       std::int64_t target, bool by_student, T inv_temperature,
                                       MomentsStorage<T, kThreads>& storage) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  ThreadMoments<T> m[2];
  int bad = 0;
  sweep<T, kThreads>(source, slice, [&](std::int64_t first, const Tile<T>& tile) {
    unsigned inside = 0, held = 0;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const std::int64_t j = first + k * kThreads;
      if (j >= slice.end) continue;
      held |= 1u << k;
      bad |= !(tile.s[k] < kInfinity) || !(tile.u[k] < kInfinity);
      const T rank = by_student ? tile.s[k] : tile.u[k];
      if (in_primary(rank, cut, j, target)) inside |= 1u << k;
    }
    push_tile(tile, inside, held, inv_temperature, m);
  });

  for (int g = 0; g < 2; ++g) {
    const ReferenceTop<T> own{m[g].shift, m[g].shift.student};
    const ReferenceTop<T> all = cub::BlockReduce<ReferenceTop<T>, kThreads>(storage.reference[g])
                                    .Reduce(own, HigherTeacher{});
    if (threadIdx.x == 0) {
      const bool overflows =
          (all.top - all.shift.student) * inv_temperature > T(kMaxStudentExponent);
      storage.common[g] = {all.shift.teacher, overflows ? all.top : all.shift.student};
    }
  }
  __syncthreads();  // thread 0 has written the common references, and the reductions' memory is
                    // free
  MomentSums own{};
  own.bad = bad;
  for (int g = 0; g < 2; ++g) {
    m[g].change_shift(storage.common[g], inv_temperature);
    own.sum_teacher[g] = m[g].sum_teacher;
    own.sum_student[g] = m[g].sum_student;
    own.sum_diff[g] = m[g].sum_diff;
    own.count[g] = m[g].count;
  }
  const MomentSums all =
      cub::BlockReduce<MomentSums, kThreads>(storage.sums).Reduce(own, AddSums{});
  PartMoments part;
  if (threadIdx.x == 0) {
    for (int g = 0; g < 2; ++g) {
      part.group[g].shift = {static_cast<double>(storage.common[g].teacher),
                             static_cast<double>(storage.common[g].student)};
      part.group[g].sum_teacher = all.sum_teacher[g];
      part.group[g].sum_student = all.sum_student[g];
      part.group[g].sum_diff = all.sum_diff[g];
      part.group[g].count = all.count[g];
    }
    part.bad = all.bad;
  }
  __syncthreads();  // nobody reuses the storage while thread 0 still reads it
  return part;
}

struct AddKl {
  __device__ __forceinline__ PartKl operator()(PartKl x, const PartKl& y) const {
    x.group[0] += y.group[0];
    x.group[1] += y.group[1];
    return x;
  }
};

template <int kThreads>
using KlStorage = typename cub::BlockReduce<PartKl, kThreads>::TempStorage;

/// Writes the gradient of a slice to gradient[0, classes) unless it is null, and returns each
/// group's KL sum, valid in thread 0. A group without a KL weight has its KL summed only if
/// `all_kl`; its gradient needs the student's exponential alone.
template <class T, int kThreads, class Source>
__device__ PartKl emit_slice(const Source& source, Slice slice, const RowState<T>& row,
                             bool by_student, T inv_temperature, bool all_kl, void* gradient,
                             std::int64_t gradient_at, KlStorage<kThreads>& storage) {
  PartKl sum{};
  const GroupCoef<T> near = row.coef[0], far = row.coef[1];
  const bool near_kl = all_kl || near.coef_diff != T(0), far_kl = all_kl || far.coef_diff != T(0);
  sweep<T, kThreads>(source, slice, [&](std::int64_t first, const Tile<T>& tile) {
    T kl[2] = {T(0), T(0)};
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const std::int64_t j = first + k * kThreads;
      if (j >= slice.end) continue;
      const T rank = by_student ? tile.s[k] : tile.u[k];
      const bool inside = in_primary(rank, row.cut, j, row.target);
      const GroupCoef<T> c = inside ? near : far;
      T value;
      if (inside ? near_kl : far_kl) {
        const ClassTerms<T> t = class_kl(tile.s[k], tile.u[k], c, inv_temperature);
        kl[inside ? 0 : 1] += t.kl;
        value = class_grad(t, c);
      } else {
        value = c.coef_q * class_student(tile.s[k], c, inv_temperature);
      }
      if (gradient != nullptr) source.store(gradient, gradient_at + j, value);
    }
    sum.group[0] += static_cast<double>(kl[0]);
    sum.group[1] += static_cast<double>(kl[1]);
  });
  return cub::BlockReduce<PartKl, kThreads>(storage).Reduce(sum, AddKl{});
}

/// Writes one value to a slice of the gradient: 0 of an ignored row, NaN of an invalid one.
template <class T, int kThreads, class Source>
__device__ void fill_slice(const Source& source, Slice slice, T value, void* gradient,
                           std::int64_t gradient_at) {
  if (gradient == nullptr) return;
  for (std::int64_t j = slice.begin + threadIdx.x; j < slice.end; j += kThreads) {
    source.store(gradient, gradient_at + j, value);
  }
}

}  // namespace gkd::cuda
