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

/// Bins whose position is a float of which the last bits are the bin.
struct VectorBins {
  static constexpr float kZero = 8388608;  // 2^23: from here on, floats are integers
  float high, bins_per_logit;

  __device__ explicit VectorBins(const Bins<float>& bins)
      : high(bins.high), bins_per_logit(bins.inv_temperature * ((kBins - 1) / bins.reach)) {}
  /// kZero plus the bin of r; more than kZero + kBins - 1 for the last one.
  __device__ __forceinline__ float position(float r) const {
    return __fmaf_rd(high - r, bins_per_logit, kZero);
  }
};

/// count_segment() over vectors. The last bin is counted too, and nobody reads it: a branch for
/// each class would take longer.
template <class Elem>
__device__ void count_vectors(const ContiguousLoader<float, Elem>& loader, int classes,
                              const Bins<float>& all_bins, int* counts) {
  const VectorBins bins(all_bins);
  const unsigned zero = static_cast<unsigned>(__cvta_generic_to_shared(counts)) -
                        (__float_as_uint(VectorBins::kZero) << 2);
  for_each_rank_vector(loader, classes, [&](const float(&r)[kPerVector<Elem>], int) {
#pragma unroll
    for (const float logit : r) {
      const float position = fminf(bins.position(logit), VectorBins::kZero + (kBins - 1));
      asm volatile("red.shared.add.u32 [%0], 1;"
                   :
                   : "r"(zero + (__float_as_uint(position) << 2))
                   : "memory");
    }
  });
}

/// fixed_mass() of many classes in two parts, without conversions of 64 bits, which consumer cards
/// have few units for. A mass times 2^-126 is a denormal number whose bits are its upper 23 binary
/// digits; what is left of it gives the rest likewise.
struct MassSum {
  unsigned upper = 0, lower = 0;

  __device__ __forceinline__ void add(unsigned x, unsigned y) {
    upper += x;
    lower += y;
  }
  /// Adds where position < first, and sets `bit` where it is neither that nor above `last`: a NaN
  /// is in the last bin. As predicated instructions: selects would take two more.
  template <bool kUpper>
  __device__ __forceinline__ void add_above(float position, float first, float last, unsigned x,
                                            unsigned y, unsigned bit, unsigned* bits) {
    if constexpr (kUpper) {
      asm("{\n.reg .pred above, outside;\n"
          "setp.lt.f32 above, %3, %4;\nsetp.gt.or.f32 outside, %3, %5, above;\n"
          "@above add.u32 %0, %0, %6;\n@above add.u32 %1, %1, %7;\n"
          "@!outside or.b32 %2, %2, %8;\n}"
          : "+r"(upper), "+r"(lower), "+r"(*bits)
          : "f"(position), "f"(first), "f"(last), "r"(x), "r"(y), "r"(bit));
    } else {
      asm("{\n.reg .pred above, outside;\n"
          "setp.lt.f32 above, %2, %3;\nsetp.gt.or.f32 outside, %2, %4, above;\n"
          "@above add.u32 %0, %0, %5;\n@!outside or.b32 %1, %1, %6;\n}"
          : "+r"(lower), "+r"(*bits)
          : "f"(position), "f"(first), "f"(last), "r"(y), "r"(bit));
    }
  }
  __device__ unsigned long long value(int lower_bits) const {
    return (static_cast<unsigned long long>(upper) << lower_bits) + lower;
  }
};

/// weigh_segment() over vectors.
template <bool kByMass, class Elem>
__device__ WeightSums<float> weigh_vectors(const ContiguousLoader<float, Elem>& loader, int classes,
                                           const Bins<float>& all_bins, ClassWeight<float> weight,
                                           const Keys<float>& keys, BinRange window, unsigned* list,
                                           int* num_listed) {
  constexpr int kN = kPerVector<Elem>, kUpperBits = 23;
  constexpr float kDenormal = 0x1p-126f;
  const VectorBins bins(all_bins);
  const Elem* rank = ranking(loader);
  const int vectors = num_vectors<Elem>(classes);
  const float first = VectorBins::kZero + window.first;
  const float last = window.last == kBins - 1 ? std::numeric_limits<float>::infinity()
                                              : VectorBins::kZero + window.last;
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
        unsigned upper = 0, lower = 1;
        if constexpr (kByMass) {
          const float mass = mass_exp(-(bins.high - r[i]), weight.inv_temperature);
          const float high = __fmul_rz(mass, kDenormal);
          upper = __float_as_uint(high);
          lower = __float_as_uint(__fmul_rz(fmaf(high, -1 / kDenormal, mass), lower_scale));
          total.add(upper, lower);
        }
        above.add_above<kByMass>(bins.position(r[i]), first, last, upper, lower, 1u << i, &bits);
      }
      in_window |= bits << k;
    }
    for (; in_window != 0; in_window &= in_window - 1) {
      const int bit = __ffs(in_window) - 1;
      const int j = (start + bit / kN * kFusedThreads) * kN + bit % kN;
      if (j >= classes) break;  // what fills the last vector
      const unsigned key = keys.of(load_as<float>(rank[j]));
      sums.high = max(sums.high, key);
      sums.low = min(sums.low, key);
      const int index = atomicAdd(num_listed, 1);
      if (index < kFusedListedKeys) list[index] = key;
    }
  }
  sums.total = total.value(lower_bits);
  sums.above = above.value(lower_bits);
  return sums;
}

}  // namespace gkd::cuda
