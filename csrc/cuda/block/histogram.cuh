// Finding a row's cut without sorting it, as block-wide pieces that several kernels share: one
// block, a cluster, a team of blocks, or one kernel after another, which differ in how partial
// counts are added up, never in what is counted.
//
//   extremes  the largest and smallest ranking logit
//   count     int32 counts by bin (math/histogram.h), then the bins that must hold the cut: the
//   window weigh     the exact amount of all classes and of those above the window; its keys' range
//   spread    exact amounts of the window's classes by key, 2,048 bins at a time, until a bin is
//             one key: the cut. A window of equal keys is one already.
//
// All sums are of integers, so nothing depends on the order of threads or blocks.
#pragma once

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "cuda/cub.h"
#include "cuda/search.cuh"
#include "cuda/sweeps.cuh"
#include "cuda/tuning.h"
#include "math/histogram.h"

namespace gkd::cuda {

/// The largest and smallest logit of a slice.
template <class T>
struct Extremes {
  T high = -std::numeric_limits<T>::infinity(), low = std::numeric_limits<T>::infinity();
};

struct WidenExtremes {
  template <class T>
  __device__ __forceinline__ Extremes<T> operator()(Extremes<T> x, const Extremes<T>& y) const {
    x.high = y.high > x.high ? y.high : x.high;
    x.low = y.low < x.low ? y.low : x.low;
    return x;
  }
};

/// The bins that must hold the cut.
struct BinRange {
  int first, last;

  __device__ __forceinline__ bool holds(int bin) const { return bin >= first && bin <= last; }
};

/// What `weigh` finds.
template <class T>
struct Weighed {
  unsigned long long total = 0, above = 0;
  KeyOf<T> high = 0, low = ~KeyOf<T>(0);  ///< of the window's keys
};

struct AddWeighed {
  template <class T>
  __device__ __forceinline__ Weighed<T> operator()(Weighed<T> x, const Weighed<T>& y) const {
    x.total += y.total;
    x.above += y.above;
    x.high = y.high > x.high ? y.high : x.high;
    x.low = y.low < x.low ? y.low : x.low;
    return x;
  }
};

/// Calls visit(r) for every ranking logit of a slice, kItems loads at a time.
template <class T, int kThreads, class Source, class Visit>
__device__ __forceinline__ void sweep_ranks(const Source& source, Slice slice, bool by_student,
                                            Visit visit) {
  for (std::int64_t first = slice.begin + threadIdx.x; first < slice.end;
       first += kItems * kThreads) {
    T r[kItems];
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const std::int64_t j = first + k * kThreads;
      if (j < slice.end) r[k] = source.rank(j, by_student);
    }
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (first + k * kThreads < slice.end) visit(r[k]);
    }
  }
}

/// A thread's extremes; NaN is passed over.
template <class T, int kThreads, class Source>
__device__ __forceinline__ Extremes<T> extremes_of(const Source& source, Slice slice,
                                                   bool by_student) {
  Extremes<T> e;
  sweep_ranks<T, kThreads>(source, slice, by_student, [&](T r) {
    e.high = r > e.high ? r : e.high;
    // -inf is no bound for bins; by size it belongs to the last one.
    e.low = r < e.low && r > -std::numeric_limits<T>::infinity() ? r : e.low;
  });
  return e;
}

template <class T>
__device__ __forceinline__ StopRule goal_of(const Problem& p) {
  return {p.group_size < 0, p.threshold, static_cast<std::uint64_t>(p.group_size)};
}

template <class T>
__device__ __forceinline__ Bins<T> bins_of(const Problem& p, Extremes<T> e, T inv_temperature) {
  return {e.high, inv_temperature,
          bin_reach(goal_of<T>(p), p.row_classes(), e.high, e.low, inv_temperature)};
}

template <class T>
__device__ __forceinline__ ClassWeight<T> amount_of(const Problem& p, T high, T inv_temperature) {
  return {p.group_size < 0, high, inv_temperature, static_cast<T>(mass_scale(p.row_classes()))};
}

/// Adds a slice's counts by bin; the last bin, most of a peaked row, is left to subtraction.
template <class T, int kThreads, class Source>
__device__ __forceinline__ void count_slice(const Source& source, Slice slice, bool by_student,
                                            const Bins<T>& bins, int* counts) {
  sweep_ranks<T, kThreads>(source, slice, by_student, [&](T r) {
    const int bin = bins.of(r);
    if (bin < kBins - 1) atomicAdd(&counts[bin], 1);
  });
}

/// Running bounds of the mass and the number of classes through a bin.
struct Through {
  double upper, lower;
  long long count;
};

struct AddThrough {
  __device__ __forceinline__ Through operator()(Through x, const Through& y) const {
    return {x.upper + y.upper, x.lower + y.lower, x.count + y.count};
  }
};

template <int kThreads>
struct WindowStorage {
  typename cub::BlockScan<Through, kThreads>::TempStorage scan;
  int first, last;
};

/// The window of the counts in counts[0, kBins - 1), block-wide: every thread gets it. It never
/// misses the cut: its first bin is the earliest at which the goal can be met, its last one the
/// earliest at which it must be.
template <class T, int kThreads>
__device__ BinRange find_window(const int* counts, const StopRule& goal, const Bins<T>& bins,
                                std::int64_t classes, WindowStorage<kThreads>& storage) {
  constexpr int kPer = kBins / kThreads;
  static_assert(kBins % kThreads == 0, "every thread scans as many bins");
  if (threadIdx.x == 0) {
    storage.first = kBins - 1;
    storage.last = kBins - 1;
  }
  Through own[kPer], all;
  const int begin = threadIdx.x * kPer;
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    const int bin = begin + k;
    const long long count = bin < kBins - 1 ? counts[bin] : 0;
    const double c = static_cast<double>(count);
    own[k] = {goal.by_mass ? c * bins.weight(bin) * (1 + kBinTolerance) : 0.0,
              goal.by_mass ? c * bins.weight(bin + 1) * (1 - kBinTolerance) : 0.0, count};
  }
  cub::BlockScan<Through, kThreads>(storage.scan).InclusiveScan(own, own, AddThrough{}, all);
  __syncthreads();  // the window's first values are written before any thread lowers them
  const double tail = static_cast<double>(classes - all.count) * bins.weight(kBins - 1);
  const double least = goal.threshold * all.lower;
  const double most = goal.threshold * (all.upper + tail * (1 + kBinTolerance));
#pragma unroll
  for (int k = kPer - 1; k >= 0; --k) {
    const bool may = goal.by_mass ? own[k].upper >= least
                                  : static_cast<std::uint64_t>(own[k].count) >= goal.target_count;
    const bool must = goal.by_mass ? own[k].lower >= most : may;
    if (begin + k == kBins - 1) continue;  // the tail: both stay there when nothing before reaches
    if (may) atomicMin(&storage.first, begin + k);
    if (must) atomicMin(&storage.last, begin + k);
  }
  __syncthreads();  // both ends are known
  return {storage.first, storage.last};
}

/// A thread's part of the exact amounts, and the window's keys appended to keys[0, capacity) as
/// long as they fit; *kept counts them all.
template <class T, int kThreads, class Source>
__device__ __forceinline__ Weighed<T> weigh_slice(const Source& source, Slice slice,
                                                  bool by_student, const Bins<T>& bins,
                                                  const ClassWeight<T>& amount, const Keys<T>& keys,
                                                  BinRange window, KeyOf<T>* list, int capacity,
                                                  int* kept) {
  Weighed<T> w;
  sweep_ranks<T, kThreads>(source, slice, by_student, [&](T r) {
    const int bin = bins.of(r);
    const unsigned long long part = amount.of(r);
    w.total += part;
    w.above += bin < window.first ? part : 0;
    if (!window.holds(bin)) return;
    const KeyOf<T> key = keys.of(r);
    w.high = key > w.high ? key : w.high;
    w.low = key < w.low ? key : w.low;
    const int at = atomicAdd(kept, 1);
    if (at < capacity) list[at] = key;
  });
  return w;
}

}  // namespace gkd::cuda
