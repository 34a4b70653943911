// Selection over vectors: the sweeps of block/histogram.cuh where the arithmetic is in float and
// the row's largest logits are finite. They find the same cut.
#pragma once

#include "cuda/block/histogram.cuh"
#include "cuda/fused/streamed.cuh"
#include "cuda/fused/vector_row.cuh"

namespace gkd::cuda {

/// The largest element of this thread's part of a segment and, where kLow, the smallest one; with
/// kSkip of all classes but the target. NaN is skipped.
template <bool kLow, bool kSkip, class Source>
__device__ __forceinline__ Extremes<float> vector_extremes(const Source& segment, int classes,
                                                           const VectorRange& range) {
  using Elem = std::decay_t<decltype(segment[0])>;
  constexpr int kN = kPerVector<Elem>;
  VectorExtremes<Elem> vectors;
#pragma unroll 4
  for (int v = threadIdx.x; v < range.whole; v += kFusedThreads) {
    if (kSkip && v == range.target) continue;
    const uint4 x = read_vector(segment, v);
    vectors.add_to_high(x);
    if constexpr (kLow) vectors.add_to_low(x);
  }
  Extremes<float> e{vectors.high(), vectors.low()};
  const auto add = [&](int j) {
    if (kSkip && j == range.target_class) return;
    const float x = load_as<float>(segment[j]);
    e = {fmaxf(e.high, x), fminf(e.low, x)};
  };
  const int thread = threadIdx.x;
  if (const int j = range.whole * kN + thread; j < classes) add(j);
  if (kSkip && range.target >= 0 && thread < kN) add(range.target * kN + thread);
  return e;
}

/// The largest of this thread's classes in the input that does not rank, likewise.
template <bool kSkip, class Elem>
__device__ __forceinline__ float other_high(const ContiguousLoader<float, Elem>& loader,
                                            int classes, const VectorRange& range) {
  return vector_extremes<false, kSkip>(not_ranking(loader), classes, range).high;
}
template <bool kSkip, class Elem>
__device__ __forceinline__ float other_high(const StreamedLoader<Elem>& loader, int /*classes*/,
                                            const VectorRange& /*range*/) {
  return loader.other_high;
}

/// Calls visit(r, v) for the ranking logits r[kPerVector] of every vector v.
template <class Elem, class Visit>
__device__ __forceinline__ void for_each_rank_vector(const ContiguousLoader<float, Elem>& loader,
                                                     int classes, Visit visit) {
  const Elem* rank = ranking(loader);
  const int vectors = num_vectors<Elem>(classes);
#pragma unroll(8 / kPerVector <Elem>)
  for (int v = threadIdx.x; v < vectors; v += kFusedThreads) {
    float r[kPerVector<Elem>];
    load_vector(rank, v, r);
    visit(r, v);
  }
}

/// A window as exponents x of ClassMass or VectorRow: a class with x > above, or NaN, is above it,
/// and one with x <= below is below it.
struct WindowEdges {
  float above, below;

  __device__ __forceinline__ bool is_above(float x) const { return !(x <= above); }
  __device__ __forceinline__ bool is_below(float x) const { return x <= below; }
  /// The ties at a known cut of exponent x: other logits can have that exponent too.
  __device__ static WindowEdges around(float cut, float x) {
    const float infinity = std::numeric_limits<float>::infinity(), nan = nanf("");
    if (cut == -infinity) return {nan, nan};  // every class is above
    return {x, x == -infinity ? nan : nextafterf(x, -infinity)};
  }
};

/// Bins of the exponents of ranking logits, which ClassMass makes with one rounding. The position
/// of a class is a float of which the last bits are the bin.
struct VectorBins {
  static constexpr float kZero = 8388608;  // 2^23: from here on, floats are integers
  float per_unit;                          ///< bins in an exponent's unit
  float top;  ///< an integer, the exponent 0 in bins under the first one's upper edge

  /// `high`: the largest exponent. The bins, and their reach, are wider where `top` would not be a
  /// small integer.
  __device__ VectorBins(Bins<float>* bins, float high) {
    const float reach = kLn2 * (kBins - 1);
    per_unit = fminf(fminf(reach / bins->reach, 1e30f), 0x1p20f / fabsf(high));
    bins->reach = reach / per_unit;
    top = ceilf(__fmul_ru(high, per_unit));
  }
  /// kZero plus the bin of x; more than kZero + kBins - 1 for the last one.
  __device__ __forceinline__ float position(float x) const {
    return __fmaf_rd(-x, per_unit, kZero + top);
  }
  /// The same classes as by position(), which is rounded down once: floor(top - x per_unit) < b
  /// where x > (top - b) / per_unit, and no float lies between that and what it is rounded down to.
  __device__ WindowEdges edges(BinRange window) const {
    const auto edge = [&](int bin) { return __fdiv_rd(top - static_cast<float>(bin), per_unit); };
    return {edge(window.first), window.last == kBins - 1 ? nanf("") : edge(window.last + 1)};
  }
};

/// count_segment() over vectors. The last bin is counted too, and nobody reads it: a branch for
/// each class would take longer.
template <class Elem>
__device__ void count_vectors(const ContiguousLoader<float, Elem>& loader, int classes,
                              const ClassMass<float>& mass, const VectorBins& bins, int* counts) {
  const unsigned zero = static_cast<unsigned>(__cvta_generic_to_shared(counts)) -
                        (__float_as_uint(VectorBins::kZero) << 2);
  for_each_rank_vector(loader, classes, [&](const float(&r)[kPerVector<Elem>], int) {
#pragma unroll
    for (const float logit : r) {
      const float position =
          fminf(bins.position(mass.exponent(logit)), VectorBins::kZero + (kBins - 1));
      asm volatile("red.shared.add.u32 [%0], 1;"
                   :
                   : "r"(zero + (__float_as_uint(position) << 2))
                   : "memory");
    }
  });
}

/// fixed_mass() of many classes in two parts, without conversions of 64 bits, which consumer cards
/// have few units for. A mass times 2^-127 is a denormal number whose bits are the upper 22 binary
/// digits behind its point; what is left of it gives the rest likewise. A segment in shared memory
/// has less than 512 classes a thread, so that sums of 23 bits do not overflow.
struct MassSum {
  unsigned upper = 0, lower = 0;

  __device__ __forceinline__ void add(unsigned x, unsigned y) {
    upper += x;
    lower += y;
  }
  /// Adds where x is above the window, and sets `bit` where it is in it. As predicated
  /// instructions: selects would take two more.
  __device__ __forceinline__ void add_above(float x, WindowEdges edges, unsigned of_upper,
                                            unsigned of_lower, unsigned bit, unsigned* bits) {
    asm("{\n.reg .pred above, inside;\n"
        "setp.gtu.f32 above, %3, %4;\nsetp.gtu.and.f32 inside, %3, %5, !above;\n"
        "@above add.u32 %0, %0, %6;\n@above add.u32 %1, %1, %7;\n"
        "@inside or.b32 %2, %2, %8;\n}"
        : "+r"(upper), "+r"(lower), "+r"(*bits)
        : "f"(x), "f"(edges.above), "f"(edges.below), "r"(of_upper), "r"(of_lower), "r"(bit));
  }
  __device__ unsigned long long value(int lower_bits) const {
    return (static_cast<unsigned long long>(upper) << lower_bits) + lower;
  }
};

/// The keys of a window's classes, as weigh_segment() lists them.
struct WindowList {
  Keys<float> keys;
  unsigned* list;
  int* num_listed;

  /// The first of `count` places in the list.
  __device__ __forceinline__ int reserve(int count) const { return atomicAdd(num_listed, count); }
  __device__ __forceinline__ void put(float r, int place, WeightSums<float>* sums) const {
    const unsigned key = keys.of(r);
    sums->high = max(sums->high, key);
    sums->low = min(sums->low, key);
    if (place < kFusedListedKeys) list[place] = key;
  }
};

/// Calls visit(bit) for the bits that are set, from the highest on: to find that one takes an
/// instruction less.
template <class Visit>
__device__ __forceinline__ void for_each_bit(unsigned bits, Visit visit) {
  while (bits != 0) {
    const int bit = 31 - __clz(static_cast<int>(bits));
    visit(bit);
    bits ^= 1u << bit;
  }
}

/// weigh_segment() over vectors, by mass.
template <class Elem>
__device__ WeightSums<float> weigh_vectors(const ContiguousLoader<float, Elem>& loader, int classes,
                                           const ClassWeight<float>& weight, WindowEdges edges,
                                           const WindowList& window) {
  constexpr int kN = kPerVector<Elem>, kUpperBits = 22;
  constexpr float kDenormal = 0x1p-127f;
  const Elem* rank = ranking(loader);
  const int vectors = num_vectors<Elem>(classes);
  const int lower_bits = ilogbf(weight.scale) - kUpperBits;
  const float lower_scale = ldexpf(kDenormal, lower_bits);
  WeightSums<float> sums;
  MassSum total, above;
  for (int start = threadIdx.x; start < vectors; start += 32 / kN * kFusedThreads) {
    unsigned in_window = 0;  // a bit for each class
#pragma unroll(8 / kN)
    for (int k = 0; k < 32; k += kN) {
      const int v = start + k / kN * kFusedThreads;
      if (v >= vectors) break;
      float r[kN];
      load_vector(rank, v, r);
      unsigned bits = 0;
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const float x = weight.mass.exponent(r[i]), mass = exp2_approx(x);
        const float high = __fmul_rz(mass, kDenormal);
        const unsigned upper = __float_as_uint(high);
        const unsigned lower =
            __float_as_uint(__fmul_rz(fmaf(high, -1 / kDenormal, mass), lower_scale));
        total.add(upper, lower);
        above.add_above(x, edges, upper, lower, 1u << i, &bits);
      }
      in_window |= bits << k;
    }
    for_each_bit(in_window, [&](int bit) {
      const int j = (start + bit / kN * kFusedThreads) * kN + bit % kN;
      if (j >= classes) return;  // what fills the last vector
      window.put(load_as<float>(rank[j]), window.reserve(1), &sums);
    });
  }
  sums.total = total.value(lower_bits);
  sums.above = above.value(lower_bits);
  return sums;
}

}  // namespace gkd::cuda
