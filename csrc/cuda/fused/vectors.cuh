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

template <class Elem>
__device__ __forceinline__ void load_vector(const Elem* segment, int v,
                                            float (&x)[kPerVector<Elem>]) {
  const uint4 vector = reinterpret_cast<const uint4*>(segment)[v];
  const Elem* elements = reinterpret_cast<const Elem*>(&vector);
#pragma unroll
  for (int i = 0; i < kPerVector<Elem>; ++i) x[i] = load_as<float>(elements[i]);
}

/// Writes x[0, count) to out, with stores that do not stay in the cache: nothing reads a gradient
/// before the kernel ends.
template <class Elem>
__device__ __forceinline__ void store_vector(const float (&x)[kPerVector<Elem>], int count,
                                             Elem* out) {
  alignas(kVectorBytes) Elem elements[kPerVector<Elem>];
#pragma unroll
  for (int i = 0; i < kPerVector<Elem>; ++i) store_as(x[i], elements + i);
  const auto address = reinterpret_cast<std::uintptr_t>(out);
  if (count == kPerVector<Elem> && address % sizeof(uint4) == 0) {
    __stcs(reinterpret_cast<uint4*>(out), *reinterpret_cast<const uint4*>(elements));
  } else if (count == kPerVector<Elem> && address % sizeof(uint2) == 0) {
    __stcs(reinterpret_cast<uint2*>(out), reinterpret_cast<const uint2*>(elements)[0]);
    __stcs(reinterpret_cast<uint2*>(out) + 1, reinterpret_cast<const uint2*>(elements)[1]);
  } else {
#pragma unroll
    for (int i = 0; i < kPerVector<Elem>; ++i) {
      if (i < count) out[i] = elements[i];
    }
  }
}

}  // namespace gkd::cuda
