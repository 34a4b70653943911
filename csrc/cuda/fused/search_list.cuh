// The radix search among the few keys of a window that one list holds: a bin for each thread
// instead of 2,048, until a warp can compare all keys that are left with each other.
#pragma once

#include "cuda/block/radix_select.cuh"

namespace gkd::cuda {

/// What is left for a warp: a key for each lane.
constexpr int kFewKeys = kWarp;

template <class T>
struct ListStorage {
  WeightSum of_warps[kFusedThreads / kWarp];
  KeyOf<T> few[kFewKeys];
  int num_few;
  int bin;
  unsigned long long above;
};

/// A stop rule by sums that `slack` bounds the error of: of the weight above a key less the
/// threshold's part of the total. Where a sum comes so near, other sums could decide otherwise.
struct BoundedRule : StopRule {
  double slack;  ///< negative: the sums are exact

  __device__ __forceinline__ bool is_in_doubt(unsigned long long sum,
                                              unsigned long long total) const {
    const double missing = static_cast<double>(sum) - threshold * static_cast<double>(total);
    return fabs(missing) <= slack;
  }
};

/// The cut among `count` keys, one for each lane of a warp that calls it: the largest key at which
/// the rule is met by the weights of all keys that are not smaller; the smallest key if none is.
template <class T>
__device__ KeyOf<T> compare_keys(const KeyOf<T>* few, int count, const BoundedRule& rule,
                                 const ClassWeight<T>& weight, const Keys<T>& keys,
                                 const RadixSearch<T>& search, bool* in_doubt) {
  const int lane = threadIdx.x % kWarp;
  const KeyOf<T> mine = few[lane < count ? lane : 0];
  const unsigned long long own = weight.of(keys.logit(mine));
  unsigned long long sum = search.above;
  for (int k = 0; k < count; ++k) {
    const unsigned long long of_key = __shfl_sync(~0u, own, k);
    if (few[k] >= mine) sum += of_key;
  }
  const bool met = rule.is_met(sum, search.total);
  if (rule.is_in_doubt(sum, search.total)) *in_doubt = true;
  const bool any = __any_sync(~0u, met);
  KeyOf<T> best = any ? (met ? mine : 0) : mine;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const KeyOf<T> other = __shfl_xor_sync(~0u, best, step);
    best = any == (other > best) ? other : best;  // the largest of those met, or the smallest
  }
  return best;
}

/// Each of a pass's kFusedThreads bins has 2^list_shift() keys.
template <class T>
__device__ __forceinline__ int list_shift(const RadixSearch<T>& search) {
  constexpr int kBits = 8;
  static_assert(kFusedThreads == 1 << kBits, "a bin for each thread");
  const int bits = bit_width(search.high - search.low);
  return bits > kBits ? bits - kBits : 0;
}

/// The search inside the bin where the rule is met, for every thread of the block.
template <class T>
__device__ RadixSearch<T> refine_list(const unsigned long long* bins, const BoundedRule& rule,
                                      const RadixSearch<T>& search, ListStorage<T>& storage,
                                      bool* in_doubt) {
  const int thread = threadIdx.x, shift = list_shift(search);
  const WeightSum own{bins[thread]};
  const Scanned<WeightSum> scan = scan_block<kFusedThreads>(own, storage.of_warps);
  const auto met = [&](unsigned long long sum) {
    return rule.is_met(search.above + sum, search.total);
  };
  // Rounding or a NaN can keep the rule unmet in every bin: then it is the lowest key's.
  const bool met_before = met(scan.before.sum), met_here = met(scan.before.sum + own.sum);
  const bool is_cut = met(scan.total.sum) ? met_here && (thread == 0 || !met_before)
                                          : thread == search.bin(search.low, shift);
  if (rule.is_in_doubt(search.above + scan.before.sum + own.sum, search.total)) *in_doubt = true;
  if (is_cut) {
    storage.bin = thread;
    storage.above = scan.before.sum;
  }
  __syncthreads();  // the bin is known
  return search.refined(storage.bin, shift, storage.above);
}

/// The key of the cut, for every thread of the block. `list` has the keys of the search's range,
/// `bins` kFusedThreads zeros; a barrier has to stand between their last use and this call. Sets
/// *in_doubt, in shared memory, where the rule is in doubt; a barrier has to follow before that is
/// read.
template <class T>
__device__ KeyOf<T> search_list(const KeyOf<T>* list, int count, const BoundedRule& rule,
                                const ClassWeight<T>& weight, const Keys<T>& keys,
                                RadixSearch<T> search, unsigned long long* bins,
                                ListStorage<T>& storage, bool* in_doubt) {
  if (count <= kFewKeys) return compare_keys(list, count, rule, weight, keys, search, in_doubt);
  const int thread = threadIdx.x;
  for (bool first = true; !search.found(); first = false) {
    const int shift = list_shift(search);
    if (!first) {
      bins[thread] = 0;
      __syncthreads();  // all bins are zero, and every thread has left the last pass
    }
    if (thread == 0) storage.num_few = 0;
    for (int k = thread; k < count; k += kFusedThreads) {
      add_to_histogram(search, shift, keys, weight, list[k], bins);
    }
    __syncthreads();  // every key is in its bin
    search = refine_list(bins, rule, search, storage, in_doubt);
    for (int k = thread; k < count; k += kFusedThreads) {
      if (!search.holds(list[k])) continue;
      const int index = atomicAdd(&storage.num_few, 1);
      if (index < kFewKeys) storage.few[index] = list[k];
    }
    __syncthreads();  // the bin's keys are gathered
    if (storage.num_few <= kFewKeys) {
      return compare_keys(storage.few, storage.num_few, rule, weight, keys, search, in_doubt);
    }
  }
  return search.high;
}

}  // namespace gkd::cuda
