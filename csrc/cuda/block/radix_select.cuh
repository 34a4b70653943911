// The radix search for a row's cut among ordered keys (math/radix_select.h), as a block's steps:
// add a key to the histogram, and refine the search to the bin where the group is complete.
#pragma once

#include "cuda/block/class_weight.cuh"
#include "cuda/block/scan.cuh"
#include "math/radix_select.h"

namespace gkd::cuda {

/// Adds one class's weight to its bin, unless the search has excluded its key.
template <class T>
__device__ __forceinline__ void add_to_histogram(const RadixSearch<T>& search, int shift,
                                                 const Keys<T>& keys, const ClassWeight<T>& weight,
                                                 KeyOf<T> key, unsigned long long* histogram) {
  if (!search.holds(key)) return;
  atomicAdd(&histogram[search.bin(key, shift)],
            static_cast<unsigned long long>(weight.of(keys.logit(key))));
}

/// Lowers *least to the first bin that a thread of the warp has found, if one has. Bins rise with
/// the threads, so the first lane that found one has it.
__device__ __forceinline__ void lower_to_first(int* least, int bin) {
  const unsigned found = __ballot_sync(~0u, bin < kBins);
  if (static_cast<int>(threadIdx.x % kWarp) == __ffs(static_cast<int>(found)) - 1) {
    atomicMin(least, bin);
  }
}

/// Weights of classes, to be added up.
struct WeightSum {
  unsigned long long sum;

  __device__ __forceinline__ void merge(const WeightSum& y) { sum += y.sum; }
};

template <int kThreads>
struct RefineStorage {
  WeightSum of_warps[kThreads / kWarp];
  int bin;
  unsigned long long above;
};

/// Refines a search to the bin where the rule is met, block-wide: every thread gets the result.
template <class T, int kThreads>
__device__ RadixSearch<T> refine_search(const unsigned long long* histogram, const StopRule& rule,
                                        RadixSearch<T> search, RefineStorage<kThreads>& storage) {
  constexpr int kBinsPerThread = kBins / kThreads;
  const int shift = search.bin_bits();
  // The fallback is the lowest key's bin: rounding or a NaN can keep the rule unmet in every bin.
  if (threadIdx.x == 0) storage.bin = search.bin(search.low, shift);
  unsigned long long prefix[kBinsPerThread];  // of the thread's own bins
  const int begin = threadIdx.x * kBinsPerThread;
#pragma unroll
  for (int k = 0; k < kBinsPerThread; ++k) {
    prefix[k] = histogram[begin + k] + (k > 0 ? prefix[k - 1] : 0);
  }
  const unsigned long long before =
      scan_block<kThreads>(WeightSum{prefix[kBinsPerThread - 1]}, storage.of_warps).before.sum;
  int met = kBins;
#pragma unroll
  for (int k = kBinsPerThread - 1; k >= 0; --k) {
    if (rule.is_met(search.above + before + prefix[k], search.total)) met = begin + k;
  }
  lower_to_first(&storage.bin, met);
  __syncthreads();  // the bin is known
  const int bin = storage.bin;
#pragma unroll
  for (int k = 0; k < kBinsPerThread; ++k) {
    if (begin + k == bin) storage.above = before + prefix[k] - histogram[bin];
  }
  __syncthreads();  // the weight above the bin is known
  const RadixSearch<T> next = search.refined(bin, shift, storage.above);
  __syncthreads();  // every thread has read the storage before it is reused
  return next;
}

}  // namespace gkd::cuda
