// The dtypes of logits as C++ types, and their conversions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "math/dtype.h"
#include "math/hostdevice.h"

namespace gkd::cuda {

/// Calls run(Elem()) with the type of `dtype`'s elements. On a device the branch is uniform: dtypes
/// are the same for the whole grid.
#pragma nv_exec_check_disable
template <class Run>
GKD_HD auto with_dtype(Dtype dtype, const Run& run) {
  switch (dtype) {
    case Dtype::kHalf:
      return run(__half{});
    case Dtype::kBFloat16:
      return run(__nv_bfloat16{});
    case Dtype::kFloat:
      return run(float{});
    default:
      return run(double{});
  }
}

/// The type of the arithmetic where both inputs have elements of type Elem.
template <class Elem>
using Arithmetic = std::conditional_t<sizeof(Elem) == 8, double, float>;

template <class T, class Elem>
__device__ __forceinline__ T load_as(Elem x) {
  return static_cast<T>(x);
}
template <class T>
__device__ __forceinline__ T load_as(__half x) {
  return static_cast<T>(__half2float(x));
}
template <class T>
__device__ __forceinline__ T load_as(__nv_bfloat16 x) {
  return static_cast<T>(__bfloat162float(x));
}

__device__ __forceinline__ void store_as(float x, __half* out) { *out = __float2half_rn(x); }
__device__ __forceinline__ void store_as(float x, __nv_bfloat16* out) {
  *out = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void store_as(float x, float* out) { *out = x; }
// One conversion from double rounds once; a cast through float would round twice.
__device__ __forceinline__ void store_as(double x, __half* out) { *out = __double2half(x); }
__device__ __forceinline__ void store_as(double x, __nv_bfloat16* out) {
  *out = __double2bfloat16(x);
}
__device__ __forceinline__ void store_as(double x, float* out) { *out = static_cast<float>(x); }
__device__ __forceinline__ void store_as(double x, double* out) { *out = x; }

}  // namespace gkd::cuda
