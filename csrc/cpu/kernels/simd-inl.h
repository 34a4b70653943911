// Vectors of floats: load, store, 16-bit conversion. GCC's vector extensions, because one source
// then compiles for AVX-512, AVX2, SSE2 and NEON, each at its own width, without a library;
// intrinsics are used where the compiler does not find the one instruction.
#pragma once

#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/kernels.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

/// What a pass over a row of T loads at once.
template <class T>
using VecOf = std::conditional_t<std::is_same_v<T, float>, VecF32, T>;
inline constexpr int kFloats = VecTraits<VecF32>::kWidth;
typedef std::uint16_t VecU16 __attribute__((vector_size(2 * kFloats)));

template <class V>
V splat(ScalarOf<V> x) {
  return V{} + x;
}

template <class V, class T>
V load(const T* in) {
  V v;
  std::memcpy(&v, in, sizeof(V));
  return v;
}

template <class V, class T>
void store(V v, T* out) {
  std::memcpy(out, &v, sizeof(V));
}

template <class V>
ScalarOf<V> reduce_max(V v) {
  ScalarOf<V> lanes[VecTraits<V>::kWidth];
  store(v, lanes);
  ScalarOf<V> high = lanes[0];
  for (auto lane : lanes) high = lane > high ? lane : high;
  return high;
}

/// movemask(x >= y), of which the compiler makes three instructions.
template <class V>
unsigned compare_bits(V x, V y) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, VecF32>) {
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(y), _CMP_GE_OQ);
  }
#endif
  return movemask(x >= y);
}

/// mask ? x : y. For a scalar without a branch, which would often be mispredicted.
template <class V>
V pick(MaskOf<V> mask, V x, V y) {
  if constexpr (VecTraits<V>::kWidth > 1) {
    return mask ? x : y;
  } else {
    std::uint64_t bits[2];
    std::memcpy(&bits[0], &x, sizeof(x));
    std::memcpy(&bits[1], &y, sizeof(y));
    const std::uint64_t all = mask ? ~std::uint64_t(0) : 0;
    bits[0] = (bits[0] & all) | (bits[1] & ~all);
    std::memcpy(&x, &bits[0], sizeof(x));
    return x;
  }
}

/// Appends the lanes of `v` whose bits are set to `out`, which has room for a whole vector; returns
/// the new end.
template <class V>
ScalarOf<V>* append_lanes(V v, unsigned bits, ScalarOf<V>* out) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, VecF32>) {
    const auto lanes = reinterpret_cast<__m512>(v);
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), lanes));
    return out + __builtin_popcount(bits);
  }
#endif
  if (bits == 0) return out;
  ScalarOf<V> lanes[VecTraits<V>::kWidth];
  store(v, lanes);
  for (auto lane : lanes) {  // without a branch
    *out = lane;
    out += bits & 1;
    bits >>= 1;
  }
  return out;
}

/// Adds a tile's float sums, one per lane, in double: neither precision nor speed is lost.
template <class V>
struct DoubleAccumulator {
  double lanes[VecTraits<V>::kWidth] = {};
  void add(V v) {
    ScalarOf<V> floats[VecTraits<V>::kWidth];
    store(v, floats);
    for (int k = 0; k < VecTraits<V>::kWidth; ++k) lanes[k] += floats[k];
  }
  void multiply(double factor) {
    for (double& lane : lanes) lane *= factor;
  }
  double sum() const {
    double total = 0;
    for (double lane : lanes) total += lane;
    return total;
  }
};

/// Adds every term in double. n terms, in any order, have a relative error under n 2^-53 where none
/// is negative.
template <class V>
struct ExactAccumulator {
  V lanes{};
  void add(V v) { lanes += v; }
  /// Only the lanes of a mask, which is given as bits too.
  void add(V v, MaskOf<V> mask, unsigned) { lanes += pick(mask, v, V{}); }
  double sum() const { return lanes; }
};
template <>
struct ExactAccumulator<VecF32> {
  typedef double Lanes __attribute__((vector_size(GKD_VEC_BYTES)));
  typedef float Half __attribute__((vector_size(GKD_VEC_BYTES / 2)));
  Lanes lanes[2] = {};

  void add(VecF32 v) {
    for (int h = 0; h < 2; ++h) lanes[h] += half(v, h);
  }
  void add(VecF32 v, VecI32 mask, unsigned bits) {
#if defined(__AVX512F__)
    for (int h = 0; h < 2; ++h) {
      const auto sum = reinterpret_cast<__m512d>(lanes[h]);
      const auto term = reinterpret_cast<__m512d>(half(v, h));
      const auto half_bits = static_cast<__mmask8>(bits >> (8 * h));
      lanes[h] = reinterpret_cast<Lanes>(_mm512_mask_add_pd(sum, half_bits, sum, term));
    }
    (void)mask;
#else
    add(mask ? v : VecF32{});
    (void)bits;
#endif
  }
  double sum() const {
    double total = 0;
    for (int l = 0; l < kFloats / 2; ++l) total += lanes[0][l] + lanes[1][l];
    return total;
  }

 private:
  static Lanes half(VecF32 v, int h) {
    Half halves[2];
    std::memcpy(halves, &v, sizeof(v));
#if defined(__AVX2__) && !defined(__AVX512F__)
    return reinterpret_cast<Lanes>(_mm256_cvtps_pd(reinterpret_cast<__m128>(halves[h])));
#else
    return __builtin_convertvector(halves[h], Lanes);
#endif
  }
};

inline VecU32 bits_of(VecF32 v) { return reinterpret_cast<VecU32>(v); }
inline VecF32 from_bits(VecU32 v) { return reinterpret_cast<VecF32>(v); }

/// Zero-extends each lane to 32 bits.
inline VecU32 zero_extend(VecU16 v) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecU32>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<VecU32>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(v)));
#else
  return __builtin_convertvector(v, VecU32);
#endif
}
inline VecF32 bfloat16_to_float(VecU16 v) { return from_bits(zero_extend(v) << 16); }

/// Rounds to nearest even; NaN stays NaN.
inline VecU16 float_to_bfloat16(VecF32 v) {
  const VecU32 bits = bits_of(v);
  const VecU32 even = reinterpret_cast<VecU32>((bits & 0x10000u) == 0u);  // -1 where it is
  // NOLINTNEXTLINE(misc-redundant-expression): false where v is a NaN
  const VecU32 rounded = v == v ? bits + 0x8000u + even : bits | 0x400000u;
  return __builtin_convertvector(rounded >> 16, VecU16);
}

inline VecF32 half_to_float(VecU16 v) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecF32>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(v)));
#elif defined(__F16C__)
  return reinterpret_cast<VecF32>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(v)));
#else
  const VecU32 bits = zero_extend(v), shifted = (bits & 0x7fffu) << 13;
  const VecU32 finite = bits_of(from_bits(shifted) * 0x1p112f);  // changes the exponent's bias
  const VecU32 magnitude = (bits & 0x7c00u) == 0x7c00u ? shifted | 0x7f800000u : finite;
  return from_bits(magnitude | ((bits & 0x8000u) << 16));
#endif
}

/// Rounds to nearest even; NaN stays NaN.
inline VecU16 float_to_half(VecF32 v) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecU16>(_mm512_cvtps_ph(reinterpret_cast<__m512>(v), 0));
#elif defined(__F16C__)
  return reinterpret_cast<VecU16>(_mm256_cvtps_ph(reinterpret_cast<__m256>(v), 0));
#else
  const VecU32 signed_bits = bits_of(v), sign = signed_bits & 0x80000000u;
  const VecU32 bits = signed_bits ^ sign;
  const VecU32 normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  // Adding 0.5 makes the float unit round a number below half's smallest normal.
  const VecU32 tiny = bits_of(from_bits(bits) + 0.5f) - (126u << 23);
  const VecU32 special = bits > 0x7f800000u ? VecU32{} + 0x7e00u : VecU32{} + 0x7c00u;
  const VecU32 finite = bits < (113u << 23) ? tiny : normal;
  const VecU32 magnitude = bits >= 0x47800000u ? special : finite;
  return __builtin_convertvector(magnitude | (sign >> 16), VecU16);
#endif
}

/// `dtype` is a 16-bit one.
inline VecF32 to_float(VecU16 v, Dtype dtype) {
  return dtype == Dtype::kHalf ? half_to_float(v) : bfloat16_to_float(v);
}
inline VecU16 from_float(VecF32 v, Dtype dtype) {
  return dtype == Dtype::kHalf ? float_to_half(v) : float_to_bfloat16(v);
}

/// Calls body(k, bytes) on each vector of `count` 16-bit numbers, the last of which may be partial.
template <class Body>
void for_each_u16_vector(std::int64_t count, Body body) {
  std::int64_t k = 0;
  for (; k + kFloats <= count; k += kFloats) body(k, sizeof(VecU16));
  if (k < count) body(k, 2 * static_cast<std::size_t>(count - k));
}

/// 16-bit numbers to floats or doubles; `out` has room for whole vectors of floats.
template <class T>
void read_u16(const std::uint16_t* in, Dtype dtype, std::int64_t count, T* out) {
  typedef T Vec __attribute__((vector_size(sizeof(T) * kFloats)));
  for_each_u16_vector(count, [&](std::int64_t k, std::size_t bytes) {
    VecU16 v{};
    std::memcpy(&v, in + k, bytes);
    store(__builtin_convertvector(to_float(v, dtype), Vec), out + k);
  });
}

/// The inverse; `in` consists of whole vectors.
inline void write_u16(const float* in, Dtype dtype, std::int64_t count, std::uint16_t* out) {
  for_each_u16_vector(count, [&](std::int64_t k, std::size_t bytes) {
    const VecU16 v = from_float(load<VecF32>(in + k), dtype);
    std::memcpy(out + k, &v, bytes);
  });
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
