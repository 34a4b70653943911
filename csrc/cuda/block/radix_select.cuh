// The search for a row's cut among ordered keys (math/radix_select.h), as a block's steps: one
// key's part in a spread, and the bin where the goal is met.
#pragma once

#include <cub/block/block_scan.cuh>

#include "cuda/cub.h"
#include "cuda/row.cuh"
#include "cuda/tuning.h"
#include "math/radix_select.h"

namespace gkd::cuda {

/// Adds one key's amount to its bin of the search.
template <class T>
__device__ __forceinline__ void spread_key(const RadixSearch<T>& search, int shift,
                                           const Keys<T>& keys, const ClassWeight<T>& amount,
                                           KeyOf<T> key, unsigned long long* amounts) {
  if (!search.holds(key)) return;
  atomicAdd(&amounts[search.bin(key, shift)],
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
__device__ RadixSearch<T> narrow_search(const unsigned long long* amounts, const StopRule& goal,
                                        RadixSearch<T> search, NarrowStorage<kThreads>& storage) {
  constexpr int kPer = kBins / kThreads;
  const int shift = search.bin_bits();
  // Where rounding or a NaN keeps every bin short, the lowest key's bin.
  if (threadIdx.x == 0) storage.bin = search.bin(search.low, shift);
  unsigned long long own[kPer];
  const int begin = threadIdx.x * kPer;
#pragma unroll
  for (int k = 0; k < kPer; ++k) own[k] = amounts[begin + k];
  cub::BlockScan<unsigned long long, kThreads>(storage.scan).InclusiveSum(own, own);
  __syncthreads();  // the fallback is written before any thread lowers it
#pragma unroll
  for (int k = kPer - 1; k >= 0; --k) {
    if (goal.is_met(search.above + own[k], search.total)) atomicMin(&storage.bin, begin + k);
  }
  if (threadIdx.x == 0) storage.above = 0;
  __syncthreads();  // the bin is known
  const int bin = storage.bin;
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    if (begin + k == bin - 1) storage.above = own[k];
  }
  __syncthreads();  // and so is what lies above it
  const RadixSearch<T> next = search.refined(bin, shift, storage.above);
  __syncthreads();  // nobody reuses the storage while it is read
  return next;
}

}  // namespace gkd::cuda
