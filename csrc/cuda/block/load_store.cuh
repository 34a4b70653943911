// Loaders read a class's two logits, for one combination of dtypes and strides, and write its
// gradient.
//
// The same thread reads class j for all strides and alignments, so strided and unaligned inputs
// give bit-identical results. Consecutive threads read consecutive classes.
#pragma once

#include "cuda/dtype.cuh"
#include "cuda/problem.h"

namespace gkd::cuda {

/// Both inputs have one dtype and are contiguous along the classes.
template <class T, class Elem>
struct ContiguousLoader {
  using Element = Elem;
  const Elem *student, *teacher;
  bool by_student;  ///< the student's logits rank the classes

  ContiguousLoader() = default;
  __device__ __forceinline__ ContiguousLoader(const Problem& p, std::int64_t row)
      : student(static_cast<const Elem*>(p.student.data) + row * p.student.row_stride),
        teacher(static_cast<const Elem*>(p.teacher.data) + row * p.teacher.row_stride),
        by_student(p.selection.by_student) {}

  __device__ __forceinline__ void load(std::int64_t j, T* s, T* u) const {
    *s = load_as<T>(student[j]);
    *u = load_as<T>(teacher[j]);
  }
  __device__ __forceinline__ T rank(std::int64_t j) const {
    return load_as<T>((by_student ? student : teacher)[j]);
  }
  __device__ __forceinline__ void store(void* gradient, std::int64_t index, T value) const {
    store_as(value, static_cast<Elem*>(gradient) + index);
  }
};

/// One logit of any dtype.
template <class T>
__device__ __forceinline__ T load_any(const Matrix& m, std::int64_t row, std::int64_t j) {
  return with_dtype(m.dtype, [&](auto elem) {
    const auto* data = static_cast<const decltype(elem)*>(m.data);
    return load_as<T>(data[row * m.row_stride + j * m.col_stride]);
  });
}

/// Any strides, and dtypes that may differ.
template <class T>
struct StridedLoader {
  Matrix student, teacher;
  std::int64_t row;
  bool by_student;

  StridedLoader() = default;
  __device__ __forceinline__ StridedLoader(const Problem& p, std::int64_t row)
      : student(p.student), teacher(p.teacher), row(row), by_student(p.selection.by_student) {}

  __device__ __forceinline__ void load(std::int64_t j, T* s, T* u) const {
    *s = load_any<T>(student, row, j);
    *u = load_any<T>(teacher, row, j);
  }
  __device__ __forceinline__ T rank(std::int64_t j) const {
    return by_student ? load_any<T>(student, row, j) : load_any<T>(teacher, row, j);
  }
  __device__ __forceinline__ void store(void* gradient, std::int64_t index, T value) const {
    with_dtype(student.dtype, [&](auto elem) {
      using Elem = decltype(elem);
      if constexpr (sizeof(Elem) <= sizeof(T)) {  // a double student makes the arithmetic double
        store_as(value, static_cast<Elem*>(gradient) + index);
      }
    });
  }
};

/// The same, of logits whose target has its margin.
template <class T>
struct MarginLoader : StridedLoader<T> {
  std::int64_t target = -1;
  T margin = T(0);

  MarginLoader() = default;
  __device__ __forceinline__ MarginLoader(const Problem& p, std::int64_t row)
      : StridedLoader<T>(p, row),
        target(p.target_of(row) - p.class_start),
        margin(static_cast<T>(p.margin(row))) {}

  __device__ __forceinline__ void load(std::int64_t j, T* s, T* u) const {
    StridedLoader<T>::load(j, s, u);
    if (j == target) *s -= margin, *u -= margin;
  }
  __device__ __forceinline__ T rank(std::int64_t j) const {
    return StridedLoader<T>::rank(j) - (j == target ? margin : T(0));
  }
};

/// Calls run(Elem()) with the type of `dtype`'s elements; both inputs have it, and their arithmetic
/// is in T.
template <class T, class Run>
cudaError_t with_element(Dtype dtype, Run run) {
  return with_dtype(dtype, [&](auto elem) -> cudaError_t {
    if constexpr (std::is_same_v<Arithmetic<decltype(elem)>, T>) {
      return run(elem);
    } else {
      return cudaErrorInvalidValue;  // equal dtypes decide the arithmetic
    }
  });
}

/// Calls run(loader) with an empty loader of the type for a problem whose arithmetic is in T.
template <class T, class Run>
cudaError_t with_loader(const Problem& p, Run run) {
  if (p.head.distill_margin) return run(MarginLoader<T>{});
  if (!p.is_contiguous()) return run(StridedLoader<T>{});
  return with_element<T>(p.student.dtype,
                         [&](auto elem) { return run(ContiguousLoader<T, decltype(elem)>{}); });
}

}  // namespace gkd::cuda
