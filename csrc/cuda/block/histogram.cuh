// Selection: finding a row's cut without sorting it. These are block-wide steps that one block, a
// group of blocks, or one kernel after another call; the callers differ in how partial results are
// combined, never in what is counted.
//
//   extremes      the largest and smallest ranking logit
//   counts        int32 counts by bin (math/histogram.h), then the window: the bins that must hold
//                 the cut
//   weights       the exact weight of all classes and of those above the window; the range of the
//                 window's keys
//   radix passes  exact weights of the window's classes by key, 2,048 bins at a time
//                 (radix_select.cuh), until a bin is one key: the cut
//
// All sums are of integers, so nothing depends on the order of threads or blocks.
#pragma once

#include "cuda/block/load_store.cuh"
#include "cuda/block/radix_select.cuh"
#include "cuda/cub.h"
#include "cuda/partition.h"

namespace gkd::cuda {

/// The largest and smallest logit of a segment.
template <class T>
struct Extremes {
  T high = -std::numeric_limits<T>::infinity(), low = std::numeric_limits<T>::infinity();

  __device__ __forceinline__ void merge(const Extremes& y) {
    high = y.high > high ? y.high : high;
    low = y.low < low ? y.low : low;
  }
};

/// The window: the bins that must hold the cut.
struct BinRange {
  int first, last;

  __device__ __forceinline__ bool holds(int bin) const { return bin >= first && bin <= last; }
};

/// The weight of all classes and of those above the window.
template <class T>
struct WeightSums {
  unsigned long long total = 0, above = 0;
  KeyOf<T> high = 0, low = ~KeyOf<T>(0);  ///< of the window's keys

  __device__ __forceinline__ void merge(const WeightSums& y) {
    total += y.total;
    above += y.above;
    high = y.high > high ? y.high : high;
    low = y.low < low ? y.low : low;
  }
};

/// Calls visit(r) for every ranking logit of a segment, kItems loads at a time.
template <class T, int kThreads, class Loader, class Visit>
__device__ __forceinline__ void for_each_rank(const Loader& loader, Segment segment, Visit visit) {
  for (std::int64_t first = segment.begin + threadIdx.x; first < segment.end;
       first += kItems * kThreads) {
    T r[kItems];
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const std::int64_t j = first + k * kThreads;
      if (j < segment.end) r[k] = loader.rank(j);
    }
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (first + k * kThreads < segment.end) visit(r[k]);
    }
  }
}

/// A thread's extremes; NaN is skipped.
template <class T, int kThreads, class Loader>
__device__ __forceinline__ Extremes<T> thread_extremes(const Loader& loader, Segment segment) {
  Extremes<T> e;
  for_each_rank<T, kThreads>(loader, segment, [&](T r) {
    e.high = r > e.high ? r : e.high;
    // -inf cannot bound the bins; in a selection by size it falls into the last one.
    e.low = r < e.low && r > -std::numeric_limits<T>::infinity() ? r : e.low;
  });
  return e;
}

template <class T>
__device__ __forceinline__ Bins<T> bins_of(const Problem& p, Extremes<T> e, T inv_temperature) {
  return {e.high, inv_temperature,
          bin_reach(stop_rule(p.selection), p.row_classes(), e.high, e.low, inv_temperature)};
}

/// Adds a segment's counts by bin. The last bin, which holds most of a peaked row, is not counted:
/// its count is the row's classes minus all others.
template <class T, int kThreads, class Loader>
__device__ __forceinline__ void count_segment(const Loader& loader, Segment segment,
                                              const Bins<T>& bins, int* counts) {
  for_each_rank<T, kThreads>(loader, segment, [&](T r) {
    const int bin = bins.of(r);
    if (bin < kBins - 1) atomicAdd(&counts[bin], 1);
  });
}

/// The mass at the bins' upper edges, and the number of classes, in all bins up to one.
struct PrefixSums {
  float mass;
  unsigned count;

  __device__ __forceinline__ void merge(const PrefixSums& y) {
    mass += y.mass;
    count += y.count;
  }
};

/// Masses of a thread's bins, which find_window() needs: made before the counts are there, since
/// the row waits for those.
template <int kThreads>
struct BinMasses {
  float first;       ///< at the upper edge of the thread's first bin
  float edge_ratio;  ///< of a bin's lower edge to its upper one
  float last;        ///< at the upper edge of the last bin

  template <class T>
  __device__ explicit BinMasses(const Bins<T>& bins) {
    constexpr int kBinsPerThread = kBins / kThreads;
    const float reach = static_cast<float>(bins.reach), width = reach * (1.0f / (kBins - 1));
    first = expf(-width * static_cast<float>(threadIdx.x * kBinsPerThread));
    edge_ratio = expf(-width);
    last = expf(-reach);
    // The compiler would make them where they are used.
    asm volatile("" : "+f"(first), "+f"(edge_ratio), "+f"(last));
  }
};

template <int kThreads>
struct WindowStorage {
  PrefixSums of_warps[kThreads / kWarp];
  int first, last;
};

/// The window from the counts in counts[0, kBins - 1), block-wide: every thread gets it. It never
/// misses the cut: its first bin is the earliest at which the rule can be met, its last one the
/// earliest at which it must be. In float: kBinTolerance is far above the rounding of the sums.
template <int kThreads>
__device__ BinRange find_window(const int* counts, const StopRule& rule,
                                const BinMasses<kThreads>& masses, std::int64_t classes,
                                WindowStorage<kThreads>& storage) {
  constexpr int kBinsPerThread = kBins / kThreads;
  static_assert(kBins % kThreads == 0, "every thread scans the same number of bins");
  constexpr float kMore = 1 + kBinTolerance, kLess = 1 - kBinTolerance;
  if (threadIdx.x == 0) {
    storage.first = kBins - 1;
    storage.last = kBins - 1;
  }
  const int begin = threadIdx.x * kBinsPerThread;
  const float edge_ratio = masses.edge_ratio;
  float edge = rule.by_mass ? masses.first : 0;
  PrefixSums prefix[kBinsPerThread], own{};  // own: of the thread's bins
#pragma unroll
  for (int k = 0; k < kBinsPerThread; ++k) {
    const int count = begin + k < kBins - 1 ? counts[begin + k] : 0;
    own.mass = fmaf(static_cast<float>(count), edge, own.mass);
    own.count += static_cast<unsigned>(count);
    prefix[k] = own;
    edge *= edge_ratio;
  }
  // The scan's barrier: the window's first values are written before any thread lowers them.
  const auto [before, total] = scan_block<kThreads>(own, storage.of_warps);
  const float tail = static_cast<float>(static_cast<int>(classes - total.count)) * masses.last;
  const float threshold = static_cast<float>(rule.threshold);
  const float least = threshold * (total.mass * edge_ratio * kLess);
  const float most = threshold * ((total.mass + tail) * kMore);
  int may = kBins, must = kBins;  // the thread's first bins, the last one apart
#pragma unroll
  for (int k = kBinsPerThread - 1; k >= 0; --k) {
    if (begin + k == kBins - 1) continue;  // the initial values name the last bin already
    const float mass = before.mass + prefix[k].mass;
    const bool counted = before.count + prefix[k].count >= rule.target_count;
    if (rule.by_mass ? mass * kMore >= least : counted) may = begin + k;
    if (rule.by_mass ? mass * edge_ratio * kLess >= most : counted) must = begin + k;
  }
  lower_to_first(&storage.first, may);
  lower_to_first(&storage.last, must);
  __syncthreads();  // both ends are known
  return {storage.first, storage.last};
}

/// A thread's weight sums. The window's keys are appended to list[0, capacity) while there is room;
/// *num_listed counts all of them.
template <class T, int kThreads, class Loader>
__device__ __forceinline__ WeightSums<T> weigh_segment(
    const Loader& loader, Segment segment, const Bins<T>& bins, const ClassWeight<T>& weight,
    const Keys<T>& keys, BinRange window, KeyOf<T>* list, int capacity, int* num_listed) {
  WeightSums<T> sums;
  for_each_rank<T, kThreads>(loader, segment, [&](T r) {
    const int bin = bins.of(r);
    const unsigned long long w = weight.of(r);
    sums.total += w;
    sums.above += bin < window.first ? w : 0;
    if (!window.holds(bin)) return;
    const KeyOf<T> key = keys.of(r);
    sums.high = key > sums.high ? key : sums.high;
    sums.low = key < sums.low ? key : sums.low;
    const int index = atomicAdd(num_listed, 1);
    if (index < capacity) list[index] = key;
  });
  return sums;
}

}  // namespace gkd::cuda
