// What a pass over classes computes with: a scalar, or on the host a vector of floats. The maths of
// a class is a template over it; comparing vectors gives masks, and `mask ? a : b` blends.
#pragma once

#include <cstdint>

#include "math/hostdevice.h"

#if defined(__x86_64__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

namespace gkd {

template <class V>
struct VecTraits {
  using Scalar = V;
  static constexpr int kWidth = 1;
};
template <class V>
using ScalarOf = typename VecTraits<V>::Scalar;
template <class V>
using MaskOf = decltype(V{} >= V{});

#if !defined(__CUDACC__)
// The widest vector of the instruction set that is compiled for.
#if defined(__AVX512F__)
#define GKD_VEC_BYTES 64
#elif defined(__AVX2__)
#define GKD_VEC_BYTES 32
#else
#define GKD_VEC_BYTES 16
#endif
typedef float VecF32 __attribute__((vector_size(GKD_VEC_BYTES)));
typedef std::int32_t VecI32 __attribute__((vector_size(GKD_VEC_BYTES)));
typedef std::uint32_t VecU32 __attribute__((vector_size(GKD_VEC_BYTES)));
template <>
struct VecTraits<VecF32> {
  using Scalar = float;
  static constexpr int kWidth = GKD_VEC_BYTES / 4;
};

/// One bit per lane.
GKD_HD unsigned movemask(VecI32 mask) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask));
#elif defined(__SSE2__)
  return _mm_movemask_ps(reinterpret_cast<__m128>(mask));
#else
  unsigned bits = 0;
  for (int k = 0; k < VecTraits<VecF32>::kWidth; ++k) bits |= (mask[k] & 1u) << k;
  return bits;
#endif
}
#endif  // !__CUDACC__

/// One bit per lane.
GKD_HD unsigned movemask(bool mask) { return mask; }
template <class V>
constexpr unsigned kAllTrue = (1u << VecTraits<V>::kWidth) - 1;

/// Whether all lanes of `mask` are true, or all are false, where that is worth a branch. On the
/// device both return false: a divergent branch would run both sides anyway.
template <class V>
GKD_HD bool all_true(MaskOf<V> mask) {
#if defined(__CUDA_ARCH__)
  return false;
#else
  return movemask(mask) == kAllTrue<V>;
#endif
}
template <class V>
GKD_HD bool all_false(MaskOf<V> mask) {
#if defined(__CUDA_ARCH__)
  return false;
#else
  return movemask(mask) == 0;
#endif
}

}  // namespace gkd
