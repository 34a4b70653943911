// A block's scan of small values by shuffles, with one barrier.
#pragma once

#include "cuda/tuning.h"

namespace gkd::cuda {

/// A value that consists of 32-bit words, from another lane: shuffle(word) is called for each word.
template <class V, class Shuffle>
__device__ __forceinline__ V shuffle_words(const V& value, Shuffle shuffle) {
  static_assert(sizeof(V) % sizeof(int) == 0);
  V other;
#pragma unroll
  for (int w = 0; w < int(sizeof(V) / sizeof(int)); ++w) {
    reinterpret_cast<int*>(&other)[w] = shuffle(reinterpret_cast<const int*>(&value)[w]);
  }
  return other;
}

template <class V>
struct Scanned {
  V before, total;  ///< of the threads before this one, and of all threads
};

/// Merges values by their own merge(), in an order that the threads' numbers alone decide. V{} is
/// nothing. A barrier has to follow before `of_warps` is used again.
template <int kThreads, class V>
__device__ Scanned<V> scan_block(V value, V (&of_warps)[kThreads / kWarp]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    V below = shuffle_words(value, [&](int word) { return __shfl_up_sync(~0u, word, step); });
    below.merge(value);
    if (lane >= step) value = below;
  }
  if (lane == kWarp - 1) of_warps[warp] = value;
  const V below = shuffle_words(value, [](int word) { return __shfl_up_sync(~0u, word, 1); });
  __syncthreads();  // every warp's value is written
  Scanned<V> result{};
#pragma unroll
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w == warp) result.before = result.total;
    result.total.merge(of_warps[w]);
  }
  if (lane > 0) result.before.merge(below);
  return result;
}

}  // namespace gkd::cuda
