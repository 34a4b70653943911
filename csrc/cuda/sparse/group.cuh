// A row's group as the kernels read it: by its place in the group, or as marks on a window of the
// row's classes.
#pragma once

#include "cuda/block/load_store.cuh"
#include "cuda/partition.h"
#include "cuda/sparse/stages.h"

namespace gkd::cuda {

/// The first of the ascending indices [begin, end) that is not below `class_index`; `end` if there
/// is none. Never reads outside of them, whatever their order is.
__device__ __forceinline__ std::int64_t place_of(const std::int32_t* indices, std::int64_t begin,
                                                 std::int64_t end, std::int64_t class_index) {
  while (begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (indices[middle] < class_index) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

/// Where the group's classes of a segment are, in a row of `classes`. The row's group must have
/// been checked.
__device__ __forceinline__ Segment group_of(const SparseGroup& group, std::int64_t row,
                                            std::int64_t classes, Segment segment) {
  const std::int64_t begin = group.begin(row), end = group.end(row);
  // Where the row has one segment, without a search: its loads wait for each other.
  const std::int64_t first =
      segment.begin == 0 ? begin : place_of(group.indices, begin, end, segment.begin);
  return {first, segment.end >= classes ? end : place_of(group.indices, first, end, segment.end)};
}

/// The place of `target` in a part of the group; -1 where it is not there.
__device__ __forceinline__ std::int64_t target_place(const SparseGroup& group, Segment part,
                                                     std::int64_t target) {
  const std::int64_t place = place_of(group.indices, part.begin, part.end, target);
  return place < part.end && group.indices[place] == target ? place : -1;
}

/// A teacher's logit of the group, divided by the scale, which it has already.
template <class T>
__device__ __forceinline__ T teacher_at(const Problem& p, std::int64_t place) {
  const T u = load_any<T>(p.teacher, 0, place);
  if (p.weights.scale == 1) return u;
  return static_cast<T>(static_cast<double>(u) / p.weights.scale);
}

/// The classes of a group by their place in it: each is primary at a cut of -inf. `Student` reads
/// the student's logits as those that rank.
template <class T, class Student>
struct GroupLoader {
  static constexpr bool by_student = false;
  Student student;
  const Problem* p;
  const std::int32_t* indices;
  std::int64_t first_class;  ///< what `student` calls class 0
  std::int64_t offset;       ///< of that class's gradient

  __device__ __forceinline__ void load(std::int64_t place, T* s, T* u) const {
    *s = student.rank(indices[place] - first_class);
    *u = teacher_at<T>(*p, place);
  }
  __device__ __forceinline__ void store(void* gradient, std::int64_t place, T value) const {
    student.store(gradient, offset + indices[place] - first_class, value);
  }
};

/// Classes of a window, whose marks take 4 KiB of shared memory: a barrier or two for each.
constexpr int kMarkedClasses = 16 * int(kTileClasses);

/// Marks the group's classes in a window. All threads of the block call it; barriers have to
/// precede it, where an earlier window's marks are read, and to follow it.
template <int kThreads>
__device__ void mark_group(const SparseGroup& group, Segment part, std::int64_t window_begin,
                           unsigned* marks) {
  for (int k = threadIdx.x; k < kMarkedClasses / kWarp; k += kThreads) marks[k] = 0;
  __syncthreads();  // the old marks are gone
  for (std::int64_t k = part.begin + threadIdx.x; k < part.end; k += kThreads) {
    const auto j = static_cast<unsigned>(group.indices[k] - window_begin);
    atomicOr(marks + j / kWarp, 1u << j % kWarp);  // of integers: any order gives the same bits
  }
}

/// A window's classes outside the group; the group's are -inf.
template <class T, class Student>
struct RestLoader {
  Student student;
  const unsigned* marks;
  std::int64_t window_begin;

  __device__ __forceinline__ void load(std::int64_t j, T* s, T* u) const {
    const auto k = static_cast<unsigned>(j - window_begin);
    *u = -std::numeric_limits<T>::infinity();
    *s = marks[k / kWarp] >> k % kWarp & 1 ? *u : student.rank(j);
  }
};

/// Calls run(student) with an empty loader of the type for the student's logits.
template <class T, class Run>
cudaError_t with_student(const Problem& p, Run run) {
  const bool same = (p.student.dtype == Dtype::kDouble) == p.compute_in_double();
  if (!same || p.student.col_stride != 1) return run(StridedLoader<T>{});
  return with_element<T>(p.student.dtype,
                         [&](auto elem) { return run(ContiguousLoader<T, decltype(elem)>{}); });
}

}  // namespace gkd::cuda
