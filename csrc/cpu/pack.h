// Packs of floats: lanes, masks, 16-bit conversion. GCC's vector extensions, because one source
// then serves AVX-512, AVX2, SSE2 and NEON at each one's own width without any library; intrinsics
// stand in where the compiler finds no single instruction.
//
// A template header, because row.cpp compiles it once per instruction set.
#pragma once

#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/row.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

/// The pack a row of T is swept with.
template <class T>
using VecOf = std::conditional_t<std::is_same_v<T, float>, VecF32, T>;
inline constexpr int kFloats = VecTraits<VecF32>::kWidth;
typedef std::uint16_t VecU16 __attribute__((vector_size(2 * kFloats)));

template <class V>
V splat(ScalarOf<V> x) {
  return V{} + x;
}

template <class V>
V load(const ScalarOf<V>* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <class V>
void store(V v, ScalarOf<V>* to) {
  std::memcpy(to, &v, sizeof(V));
}

inline VecU16 load_half(const std::uint16_t* from) {
  VecU16 v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class V>
ScalarOf<V> reduce_max(V v) {
  ScalarOf<V> lanes[VecTraits<V>::kWidth];
  store(v, lanes);
  ScalarOf<V> high = lanes[0];
  for (auto lane : lanes) high = lane > high ? lane : high;
  return high;
}

/// A float sum per lane, moved to double after each block: neither precision nor speed is lost.
template <class V>
struct Lanes {
  double lane[VecTraits<V>::kWidth] = {};
  void add(V v) {
    ScalarOf<V> from[VecTraits<V>::kWidth];
    store(v, from);
    for (int k = 0; k < VecTraits<V>::kWidth; ++k) lane[k] += from[k];
  }
  double sum() const {
    double total = 0;
    for (double x : lane) total += x;
    return total;
  }
};

inline VecU32 bits_of(VecF32 v) { return reinterpret_cast<VecU32>(v); }
inline VecF32 from_bits(VecU32 v) { return reinterpret_cast<VecF32>(v); }

/// Each in a word of its own.
inline VecU32 words(VecU16 v) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecU32>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<VecU32>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(v)));
#else
  return __builtin_convertvector(v, VecU32);
#endif
}
inline VecF32 widen_bfloat16(VecU16 v) { return from_bits(words(v) << 16); }

/// Round to nearest even; a NaN stays one.
inline VecU16 narrow_bfloat16(VecF32 v) {
  const VecU32 bits = bits_of(v);
  const VecU32 even = reinterpret_cast<VecU32>((bits & 0x10000u) == 0u);  // -1 where it is
  // NOLINTNEXTLINE(misc-redundant-expression): false where v is a NaN
  const VecU32 kept = v == v ? bits + 0x8000u + even : bits | 0x400000u;
  return __builtin_convertvector(kept >> 16, VecU16);
}

inline VecF32 widen_half(VecU16 v) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecF32>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(v)));
#elif defined(__F16C__)
  return reinterpret_cast<VecF32>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(v)));
#else
  const VecU32 bits = words(v), shifted = (bits & 0x7fffu) << 13;
  const VecU32 finite = bits_of(from_bits(shifted) * 0x1p112f);  // moves the exponent's bias
  const VecU32 magnitude = (bits & 0x7c00u) == 0x7c00u ? shifted | 0x7f800000u : finite;
  return from_bits(magnitude | ((bits & 0x8000u) << 16));
#endif
}

inline VecU16 narrow_half(VecF32 v) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecU16>(_mm512_cvtps_ph(reinterpret_cast<__m512>(v), 0));
#elif defined(__F16C__)
  return reinterpret_cast<VecU16>(_mm256_cvtps_ph(reinterpret_cast<__m256>(v), 0));
#else
  const VecU32 all = bits_of(v), sign = all & 0x80000000u, bits = all ^ sign;
  const VecU32 normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  // Adding 0.5 lets the float unit round a number below half's smallest normal.
  const VecU32 tiny = bits_of(from_bits(bits) + 0.5f) - (126u << 23);
  const VecU32 special = bits > 0x7f800000u ? VecU32{} + 0x7e00u : VecU32{} + 0x7c00u;
  const VecU32 finite = bits < (113u << 23) ? tiny : normal;
  const VecU32 magnitude = bits >= 0x47800000u ? special : finite;
  return __builtin_convertvector(magnitude | (sign >> 16), VecU16);
#endif
}

inline VecF32 widen(VecU16 v, Dtype dtype) {
  return dtype == Dtype::kHalf ? widen_half(v) : widen_bfloat16(v);
}
inline VecU16 narrow(VecF32 v, Dtype dtype) {
  return dtype == Dtype::kHalf ? narrow_half(v) : narrow_bfloat16(v);
}

/// A 16-bit row into floats; `to` has room for a whole number of packs.
inline void widen_row(const std::uint16_t* from, Dtype dtype, std::int64_t count, float* to) {
  std::int64_t k = 0;
  for (; k + kFloats <= count; k += kFloats) {
    store(widen(load_half(from + k), dtype), to + k);
  }
  if (k == count) return;
  VecU16 v{};
  std::memcpy(&v, from + k, 2 * (count - k));
  store(widen(v, dtype), to + k);
}

/// The inverse; `from` holds a whole number of packs.
inline void narrow_row(const float* from, Dtype dtype, std::int64_t count, std::uint16_t* to) {
  std::int64_t k = 0;
  for (; k + kFloats <= count; k += kFloats) {
    const VecU16 v = narrow(load<VecF32>(from + k), dtype);
    std::memcpy(to + k, &v, sizeof(v));
  }
  if (k == count) return;
  const VecU16 v = narrow(load<VecF32>(from + k), dtype);
  std::memcpy(to + k, &v, 2 * (count - k));
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
