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
using PackOf = std::conditional_t<std::is_same_v<T, float>, FloatPack, T>;
inline constexpr int kFloats = Traits<FloatPack>::kWidth;
typedef std::uint16_t HalfPack __attribute__((vector_size(2 * kFloats)));

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

inline HalfPack load_half(const std::uint16_t* from) {
  HalfPack v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class V>
ScalarOf<V> max_lane(V v) {
  ScalarOf<V> lanes[Traits<V>::kWidth];
  store(v, lanes);
  ScalarOf<V> high = lanes[0];
  for (auto lane : lanes) high = lane > high ? lane : high;
  return high;
}

/// A float sum per lane, moved to double after each block: neither precision nor speed is lost.
template <class V>
struct Lanes {
  double lane[Traits<V>::kWidth] = {};
  void add(V v) {
    ScalarOf<V> from[Traits<V>::kWidth];
    store(v, from);
    for (int k = 0; k < Traits<V>::kWidth; ++k) lane[k] += from[k];
  }
  double sum() const {
    double total = 0;
    for (double x : lane) total += x;
    return total;
  }
};

inline WordPack bits_of(FloatPack v) { return reinterpret_cast<WordPack>(v); }
inline FloatPack from_bits(WordPack v) { return reinterpret_cast<FloatPack>(v); }

/// Each in a word of its own.
inline WordPack words(HalfPack v) {
#if defined(__AVX512F__)
  return reinterpret_cast<WordPack>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<WordPack>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(v)));
#else
  return __builtin_convertvector(v, WordPack);
#endif
}
inline FloatPack widen_bfloat16(HalfPack v) { return from_bits(words(v) << 16); }

/// Round to nearest even; a NaN stays one.
inline HalfPack narrow_bfloat16(FloatPack v) {
  const WordPack bits = bits_of(v);
  const WordPack even = reinterpret_cast<WordPack>((bits & 0x10000u) == 0u);  // -1 where it is
  // NOLINTNEXTLINE(misc-redundant-expression): false where v is a NaN
  const WordPack kept = v == v ? bits + 0x8000u + even : bits | 0x400000u;
  return __builtin_convertvector(kept >> 16, HalfPack);
}

inline FloatPack widen_half(HalfPack v) {
#if defined(__AVX512F__)
  return reinterpret_cast<FloatPack>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(v)));
#elif defined(__F16C__)
  return reinterpret_cast<FloatPack>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(v)));
#else
  const WordPack bits = words(v), shifted = (bits & 0x7fffu) << 13;
  const WordPack finite = bits_of(from_bits(shifted) * 0x1p112f);  // moves the exponent's bias
  const WordPack magnitude = (bits & 0x7c00u) == 0x7c00u ? shifted | 0x7f800000u : finite;
  return from_bits(magnitude | ((bits & 0x8000u) << 16));
#endif
}

inline HalfPack narrow_half(FloatPack v) {
#if defined(__AVX512F__)
  return reinterpret_cast<HalfPack>(_mm512_cvtps_ph(reinterpret_cast<__m512>(v), 0));
#elif defined(__F16C__)
  return reinterpret_cast<HalfPack>(_mm256_cvtps_ph(reinterpret_cast<__m256>(v), 0));
#else
  const WordPack all = bits_of(v), sign = all & 0x80000000u, bits = all ^ sign;
  const WordPack normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  // Adding 0.5 lets the float unit round a number below half's smallest normal.
  const WordPack tiny = bits_of(from_bits(bits) + 0.5f) - (126u << 23);
  const WordPack special = bits > 0x7f800000u ? WordPack{} + 0x7e00u : WordPack{} + 0x7c00u;
  const WordPack finite = bits < (113u << 23) ? tiny : normal;
  const WordPack magnitude = bits >= 0x47800000u ? special : finite;
  return __builtin_convertvector(magnitude | (sign >> 16), HalfPack);
#endif
}

inline FloatPack widen(HalfPack v, Dtype dtype) {
  return dtype == Dtype::kHalf ? widen_half(v) : widen_bfloat16(v);
}
inline HalfPack narrow(FloatPack v, Dtype dtype) {
  return dtype == Dtype::kHalf ? narrow_half(v) : narrow_bfloat16(v);
}

/// A 16-bit row into floats; `to` has room for a whole number of packs.
inline void widen_row(const std::uint16_t* from, Dtype dtype, std::int64_t count, float* to) {
  std::int64_t k = 0;
  for (; k + kFloats <= count; k += kFloats) {
    store(widen(load_half(from + k), dtype), to + k);
  }
  if (k == count) return;
  HalfPack v{};
  std::memcpy(&v, from + k, 2 * (count - k));
  store(widen(v, dtype), to + k);
}

/// The inverse; `from` holds a whole number of packs.
inline void narrow_row(const float* from, Dtype dtype, std::int64_t count, std::uint16_t* to) {
  std::int64_t k = 0;
  for (; k + kFloats <= count; k += kFloats) {
    const HalfPack v = narrow(load<FloatPack>(from + k), dtype);
    std::memcpy(to + k, &v, sizeof(v));
  }
  if (k == count) return;
  const HalfPack v = narrow(load<FloatPack>(from + k), dtype);
  std::memcpy(to + k, &v, 2 * (count - k));
}

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
