// Ordered keys, and the search among them for a row's cut: exact integer amounts by key, 2,048 bins
// at a time, until a bin is one key.
#pragma once

#include <cub/block/block_scan.cuh>

#include "cuda/cub.h"
#include "cuda/row.cuh"
#include "cuda/tuning.h"
#include "math/bins.h"

namespace gkd::cuda {

template <class T>
using KeyOf = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned int>;

/// Ordered keys of the arithmetic's type, without the low bits that the input's dtype leaves equal:
/// a 16-bit row then takes a pass less.
template <class T>
struct Keys {
  int unit;

  __device__ __forceinline__ explicit Keys(Dtype ranking) {
    const int fraction = ranking == Dtype::kHalf       ? 10
                         : ranking == Dtype::kBFloat16 ? 7
                         : ranking == Dtype::kFloat    ? 23
                                                       : 52;
    unit = (sizeof(T) == 8 ? 52 : 23) - fraction;
  }
  __device__ __forceinline__ KeyOf<T> of(T r) const {
    if constexpr (sizeof(T) == 8) {
      const auto bits = static_cast<unsigned long long>(__double_as_longlong(r));
      return ordered_key<unsigned long long>(bits, 0x7ff0000000000000ull) >> unit;
    } else {
      return ordered_key<unsigned int>(__float_as_uint(r), 0x7f800000u) >> unit;
    }
  }
  __device__ __forceinline__ T logit(KeyOf<T> key) const {
    KeyOf<T> whole = key << unit;
    // Below zero the order turns the bits around: what was cut off were ones.
    if (!(whole >> (8 * sizeof(T) - 1))) whole |= (KeyOf<T>(1) << unit) - 1;
    const KeyOf<T> bits = key_to_bits(whole);
    if constexpr (sizeof(T) == 8) {
      return __longlong_as_double(static_cast<long long>(bits));
    } else {
      return __uint_as_float(bits);
    }
  }
};

/// The keys that may still be the cut.
template <class T>
struct Search {
  KeyOf<T> high, low;
  unsigned long long above, total;

  /// Keys of one bin of the next spread: 2^shift.
  __device__ __forceinline__ int shift() const {
    const KeyOf<T> span = high - low;
    const int bits = 8 * int(sizeof(span)) - (sizeof(span) == 8 ? __clzll(span) : __clz(span));
    return bits > kSpreadBits ? bits - kSpreadBits : 0;
  }
  __device__ __forceinline__ bool found() const { return high == low; }
};

/// Adds one key's amount to its bin of the search.
template <class T>
__device__ __forceinline__ void spread_key(const Search<T>& search, int shift, const Keys<T>& keys,
                                           const Amount<T>& amount, KeyOf<T> key,
                                           unsigned long long* amounts) {
  if (key > search.high || key < search.low) return;
  atomicAdd(&amounts[(search.high - key) >> shift],
            static_cast<unsigned long long>(amount.of(keys.logit(key))));
}

template <int kThreads>
struct NarrowStorage {
  typename cub::BlockScan<unsigned long long, kThreads>::TempStorage scan;
  int bin;
  unsigned long long above;
};

/// Narrows a search to the bin where the goal is met, block-wide: every thread gets the result.
template <class T, int kThreads>
__device__ Search<T> narrow_search(const unsigned long long* amounts, const Goal& goal,
                                   Search<T> search, NarrowStorage<kThreads>& storage) {
  constexpr int kPer = kBins / kThreads;
  const int shift = search.shift();
  // Where rounding or a NaN keeps every bin short, the lowest key's bin.
  if (threadIdx.x == 0) storage.bin = static_cast<int>((search.high - search.low) >> shift);
  unsigned long long own[kPer];
  const int begin = threadIdx.x * kPer;
#pragma unroll
  for (int k = 0; k < kPer; ++k) own[k] = amounts[begin + k];
  cub::BlockScan<unsigned long long, kThreads>(storage.scan).InclusiveSum(own, own);
  __syncthreads();  // the fallback is written before any thread lowers it
#pragma unroll
  for (int k = kPer - 1; k >= 0; --k) {
    if (goal.reached(search.above + own[k], search.total)) atomicMin(&storage.bin, begin + k);
  }
  if (threadIdx.x == 0) storage.above = 0;
  __syncthreads();  // the bin is known
  const int bin = storage.bin;
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    if (begin + k == bin - 1) storage.above = own[k];
  }
  __syncthreads();  // and so is what lies above it
  Search<T> next = search;
  next.above += storage.above;
  next.high -= static_cast<KeyOf<T>>(bin) << shift;
  const KeyOf<T> width = (KeyOf<T>(1) << shift) - 1;
  const KeyOf<T> low = next.high >= width ? next.high - width : 0;
  next.low = low > search.low ? low : search.low;
  __syncthreads();  // nobody reuses the storage while it is read
  return next;
}

}  // namespace gkd::cuda
