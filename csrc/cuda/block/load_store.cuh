// Reading a row's two logits, whatever their dtype and strides, and writing its gradient.
//
// Class j is read by the same thread whatever the strides and the alignment, so a strided or
// shifted input gives the bits of a contiguous one. Consecutive threads read consecutive classes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/state.h"

namespace gkd::cuda {

template <class T>
__device__ __forceinline__ T widen(__half x) {
  return static_cast<T>(__half2float(x));
}
template <class T>
__device__ __forceinline__ T widen(__nv_bfloat16 x) {
  return static_cast<T>(__bfloat162float(x));
}
template <class T>
__device__ __forceinline__ T widen(float x) {
  return static_cast<T>(x);
}
template <class T>
__device__ __forceinline__ T widen(double x) {
  return static_cast<T>(x);
}

__device__ __forceinline__ void narrow(float x, __half* to) { *to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, float* to) { *to = x; }
// The one conversion from double rounds once, as a cast through float would not.
__device__ __forceinline__ void narrow(double x, __half* to) { *to = __double2half(x); }
__device__ __forceinline__ void narrow(double x, __nv_bfloat16* to) { *to = __double2bfloat16(x); }
__device__ __forceinline__ void narrow(double x, float* to) { *to = static_cast<float>(x); }
__device__ __forceinline__ void narrow(double x, double* to) { *to = x; }

/// Both inputs are contiguous along the classes and of one dtype.
template <class T, class Elem>
struct Direct {
  using Value = T;
  const Elem *s, *u;

  __device__ __forceinline__ Direct(const Problem& p, std::int64_t row)
      : s(static_cast<const Elem*>(p.student.data) + row * p.student.row_stride),
        u(static_cast<const Elem*>(p.teacher.data) + row * p.teacher.row_stride) {}

  __device__ __forceinline__ void load(std::int64_t j, T* student, T* teacher) const {
    *student = widen<T>(s[j]);
    *teacher = widen<T>(u[j]);
  }
  __device__ __forceinline__ T rank(std::int64_t j, bool by_student) const {
    return widen<T>((by_student ? s : u)[j]);
  }
  __device__ __forceinline__ void store(void* gradient, std::int64_t at, T value) const {
    narrow(value, static_cast<Elem*>(gradient) + at);
  }
};

/// One logit of any dtype: a branch that every thread of the grid takes alike.
template <class T>
__device__ __forceinline__ T load_any(const Matrix& m, std::int64_t at) {
  switch (m.dtype) {
    case Dtype::kHalf:
      return widen<T>(static_cast<const __half*>(m.data)[at]);
    case Dtype::kBFloat16:
      return widen<T>(static_cast<const __nv_bfloat16*>(m.data)[at]);
    case Dtype::kFloat:
      return widen<T>(static_cast<const float*>(m.data)[at]);
    default:
      return widen<T>(static_cast<const double*>(m.data)[at]);
  }
}

/// Any strides, and dtypes that may differ.
template <class T>
struct Strided {
  using Value = T;
  Matrix s, u;
  std::int64_t s_row, u_row;

  __device__ __forceinline__ Strided(const Problem& p, std::int64_t row)
      : s(p.student),
        u(p.teacher),
        s_row(row * p.student.row_stride),
        u_row(row * p.teacher.row_stride) {}

  __device__ __forceinline__ void load(std::int64_t j, T* student, T* teacher) const {
    *student = load_any<T>(s, s_row + j * s.col_stride);
    *teacher = load_any<T>(u, u_row + j * u.col_stride);
  }
  __device__ __forceinline__ T rank(std::int64_t j, bool by_student) const {
    return by_student ? load_any<T>(s, s_row + j * s.col_stride)
                      : load_any<T>(u, u_row + j * u.col_stride);
  }
  __device__ __forceinline__ void store(void* gradient, std::int64_t at, T value) const {
    switch (s.dtype) {
      case Dtype::kHalf:
        return narrow(value, static_cast<__half*>(gradient) + at);
      case Dtype::kBFloat16:
        return narrow(value, static_cast<__nv_bfloat16*>(gradient) + at);
      case Dtype::kFloat:
        return narrow(value, static_cast<float*>(gradient) + at);
      default:
        if constexpr (sizeof(T) == sizeof(double)) {
          narrow(value, static_cast<double*>(gradient) + at);
        }
    }
  }
};

/// Calls `run(tag)` with a null pointer of the Source that fits a problem whose arithmetic is in T.
template <class T, class Run>
cudaError_t with_source_of(const Problem& p, Run run) {
  const bool direct =
      p.student.dtype == p.teacher.dtype && p.student.col_stride == 1 && p.teacher.col_stride == 1;
  if (!direct) return run(static_cast<Strided<T>*>(nullptr));
  if constexpr (sizeof(T) == sizeof(double)) {
    return run(static_cast<Direct<double, double>*>(nullptr));
  } else {
    switch (p.student.dtype) {
      case Dtype::kHalf:
        return run(static_cast<Direct<float, __half>*>(nullptr));
      case Dtype::kBFloat16:
        return run(static_cast<Direct<float, __nv_bfloat16>*>(nullptr));
      default:
        return run(static_cast<Direct<float, float>*>(nullptr));
    }
  }
}

}  // namespace gkd::cuda
