// Whole 16-byte vectors of a segment in shared memory, and of its gradient in device memory.
//
// A segment starts at a vector's boundary in shared memory whatever its alignment in device memory,
// so a thread owns the same classes for all alignments. The last vector is filled up with -inf,
// which adds nothing to a sum or a maximum.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "cuda/block/load_store.cuh"

namespace gkd::cuda {

/// Elements in a vector.
template <class Elem>
constexpr int kPerVector = kVectorBytes / int(sizeof(Elem));

/// Vectors that hold `classes` elements.
template <class Elem>
__device__ __forceinline__ int num_vectors(int classes) {
  return (classes + kPerVector<Elem> - 1) / kPerVector<Elem>;
}

template <class Word, class Elem>
__device__ __forceinline__ int copy_words(Elem* shared, const Elem* global, int count) {
  constexpr int kPerWord = int(sizeof(Word) / sizeof(Elem));
  for (int k = threadIdx.x; k < count / kPerWord; k += kFusedThreads) {
    __pipeline_memcpy_async(shared + k * kPerWord, global + k * kPerWord, sizeof(Word));
  }
  return count / kPerWord * kPerWord;
}

/// Starts copying `count` elements to shared memory, in the widest words that their alignment
/// allows.
template <class Elem>
__device__ void copy_segment(Elem* shared, const Elem* global, int count) {
  const auto address = reinterpret_cast<std::uintptr_t>(global);
  int copied = 0;
  if (address % sizeof(uint4) == 0) {
    copied = copy_words<uint4>(shared, global, count);
  } else if (address % sizeof(uint2) == 0) {
    copied = copy_words<uint2>(shared, global, count);
  } else if constexpr (sizeof(Elem) <= sizeof(unsigned)) {
    if (address % sizeof(unsigned) == 0) copied = copy_words<unsigned>(shared, global, count);
  }
  for (int k = copied + threadIdx.x; k < count; k += kFusedThreads) shared[k] = global[k];
  const int end = num_vectors<Elem>(count) * kPerVector<Elem>;
  for (int k = count + threadIdx.x; k < end; k += kFusedThreads) {
    store_as(-std::numeric_limits<Arithmetic<Elem>>::infinity(), shared + k);
  }
}

__device__ __forceinline__ uint4 read_vector(const void* segment, int v) {
  return static_cast<const uint4*>(segment)[v];
}

// Two 16-bit elements in a word as floats, the first in its lower half.
__device__ __forceinline__ float2 widen(unsigned word, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&word));
}
__device__ __forceinline__ float2 widen(unsigned word, __nv_bfloat16) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
__device__ __forceinline__ unsigned narrow(float x, float y, __half) {
  const __half2 pair = __floats2half2_rn(x, y);
  return *reinterpret_cast<const unsigned*>(&pair);
}
__device__ __forceinline__ unsigned narrow(float x, float y, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const unsigned*>(&pair);
}

template <class Elem>
__device__ __forceinline__ void unpack(const uint4& vector, float (&x)[kPerVector<Elem>]) {
  const unsigned words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if constexpr (sizeof(Elem) == sizeof(float)) {
      x[w] = __uint_as_float(words[w]);
    } else {
      const float2 pair = widen(words[w], Elem{});
      x[2 * w] = pair.x;
      x[2 * w + 1] = pair.y;
    }
  }
}

template <class Elem>
__device__ __forceinline__ void load_vector(const Elem* segment, int v,
                                            float (&x)[kPerVector<Elem>]) {
  unpack<Elem>(read_vector(segment, v), x);
}

/// The largest and the smallest element of vectors; 16-bit pairs are compared as they are. NaN is
/// skipped.
template <class Elem>
struct VectorExtremes {
  using Pair = std::conditional_t<std::is_same_v<Elem, __half>, __half2, __nv_bfloat162>;
  Pair most, least;

  __device__ VectorExtremes() {
    Elem infinity;
    store_as(std::numeric_limits<float>::infinity(), &infinity);
    least = Pair(infinity, infinity);
    most = __hneg2(least);
  }
  __device__ __forceinline__ void add_to_high(const uint4& vector) {
    const Pair* x = reinterpret_cast<const Pair*>(&vector);
    most = __hmax2(most, __hmax2(__hmax2(x[0], x[1]), __hmax2(x[2], x[3])));
  }
  __device__ __forceinline__ void add_to_low(const uint4& vector) {
    const Pair* x = reinterpret_cast<const Pair*>(&vector);
    least = __hmin2(least, __hmin2(__hmin2(x[0], x[1]), __hmin2(x[2], x[3])));
  }
  __device__ __forceinline__ float high() const {
    return fmaxf(load_as<float>(most.x), load_as<float>(most.y));
  }
  __device__ __forceinline__ float low() const {
    return fminf(load_as<float>(least.x), load_as<float>(least.y));
  }
};

template <>
struct VectorExtremes<float> {
  float most = -std::numeric_limits<float>::infinity();
  float least = std::numeric_limits<float>::infinity();

  __device__ __forceinline__ void add_to_high(const uint4& vector) {
    float x[4];
    unpack<float>(vector, x);
    most = fmaxf(most, fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])));
  }
  __device__ __forceinline__ void add_to_low(const uint4& vector) {
    float x[4];
    unpack<float>(vector, x);
    least = fminf(least, fminf(fminf(x[0], x[1]), fminf(x[2], x[3])));
  }
  __device__ __forceinline__ float high() const { return most; }
  __device__ __forceinline__ float low() const { return least; }
};

/// What the loops over a segment's vectors leave out.
struct VectorRange {
  int whole;   ///< vectors of which every element is a class
  int target;  ///< the whole vector that has the target; -1: none
  int target_class;

  template <class Elem>
  __device__ static VectorRange of(int classes, std::int64_t target) {
    VectorRange range{classes / kPerVector<Elem>, -1, -1};
    if (target < 0 || target >= classes) return range;
    range.target_class = static_cast<int>(target);
    if (range.target_class / kPerVector<Elem> < range.whole) {
      range.target = range.target_class / kPerVector<Elem>;
    }
    return range;
  }
  /// The class that this thread visits after the loop, or -1.
  template <class Elem>
  __device__ int left_out(int classes) const {
    constexpr int kN = kPerVector<Elem>;
    const int thread = threadIdx.x;
    if (thread < kN) return target < 0 ? -1 : target * kN + thread;
    const int j = whole * kN + thread - kN;
    return thread < 2 * kN && j < classes ? j : -1;
  }
};

/// Writes vectors of a segment's gradient, in the widest words that its alignment allows; nothing
/// if there is no gradient. The stores do not stay in the cache: nothing reads a gradient before
/// the kernel ends.
template <class Elem>
class VectorStore {
 public:
  __device__ explicit VectorStore(Elem* gradient)
      : gradient_(gradient),
        width_(gradient == nullptr ? 0 : 16 | reinterpret_cast<std::uintptr_t>(gradient) % 16) {}

  __device__ __forceinline__ void operator()(const float (&x)[kPerVector<Elem>], int v) const {
    unsigned words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (sizeof(Elem) == sizeof(float)) {
        words[w] = __float_as_uint(x[w]);
      } else {
        words[w] = narrow(x[2 * w], x[2 * w + 1], Elem{});
      }
    }
    Elem* out = gradient_ + v * kPerVector<Elem>;
    if (width_ == 16) {
      __stcs(reinterpret_cast<uint4*>(out), make_uint4(words[0], words[1], words[2], words[3]));
    } else if (width_ == 16 + 8) {
      __stcs(reinterpret_cast<uint2*>(out), make_uint2(words[0], words[1]));
      __stcs(reinterpret_cast<uint2*>(out) + 1, make_uint2(words[2], words[3]));
    } else if (width_ != 0) {
#pragma unroll
      for (int i = 0; i < kPerVector<Elem>; ++i) store_as(x[i], out + i);
    }
  }

 private:
  Elem* gradient_;
  int width_;  ///< 0: no gradient; else 16 plus its address modulo 16
};

}  // namespace gkd::cuda
