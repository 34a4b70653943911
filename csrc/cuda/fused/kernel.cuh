// A row in one kernel: both inputs are copied into shared memory once, and every pass reads them
// there. Device memory sees each input read once and the gradient written once, the least possible.
// A group of blocks (block_group.cuh) processes the row; each block copies one segment.
//
// The copy preserves each element's offset modulo 16 bytes, so all but the head and the tail of an
// unaligned row are copied as whole vectors. A thread reads the same classes for all alignments.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "cuda/fused/launch.h"
#include "cuda/fused/shared_memory.cuh"

namespace gkd::cuda {

/// Reads a segment in shared memory; j counts from the segment's first class.
template <class T, class Elem>
struct SharedLoader {
  const Elem *student, *teacher;

  __device__ __forceinline__ void load(std::int64_t j, T* s, T* u) const {
    *s = load_as<T>(student[j]);
    *u = load_as<T>(teacher[j]);
  }
  __device__ __forceinline__ T rank(std::int64_t j, bool by_student) const {
    return load_as<T>((by_student ? student : teacher)[j]);
  }
  __device__ __forceinline__ void store(void* gradient, std::int64_t index, T value) const {
    store_as(value, static_cast<Elem*>(gradient) + index);
  }
};

/// Starts copying `count` elements to shared memory; returns where the first one will be.
template <int kThreads, class Elem>
__device__ const Elem* copy_segment(char* shared, const Elem* global, int count) {
  constexpr int kPerVector = kVectorBytes / int(sizeof(Elem));
  const auto offset = reinterpret_cast<std::uintptr_t>(global) % kVectorBytes;
  Elem* first = reinterpret_cast<Elem*>(shared + offset);
  const int unaligned = offset == 0 ? 0 : int((kVectorBytes - offset) / sizeof(Elem));
  const int head = unaligned < count ? unaligned : count;
  const int vectors = (count - head) / kPerVector, tail = head + vectors * kPerVector;
  for (int k = threadIdx.x; k < vectors; k += kThreads) {
    __pipeline_memcpy_async(first + head + k * kPerVector, global + head + k * kPerVector,
                            kVectorBytes);
  }
  for (int k = threadIdx.x; k < head; k += kThreads) first[k] = global[k];
  for (int k = tail + threadIdx.x; k < count; k += kThreads) first[k] = global[k];
  return first;
}

/// Every block's value, combined in rank order.
template <class V, class BlockGroup, class Combine>
__device__ V all_reduce(BlockGroup& group, const V& value, Combine combine) {
  const Slot* slots = group.all_gather(value);
  V result{};
  for (int r = 0; r < group.size(); ++r) result = combine(result, read_slot<V>(slots, r));
  return result;
}

/// The row's cut, for every thread of every block.
template <class T, int kThreads, class Loader, class BlockGroup>
__device__ T find_cut(const Problem& p, const Loader& loader, Segment segment, T inv_temperature,
                      FusedStorage<T, BlockGroup, kThreads>& shared, BlockGroup& group) {
  const StopRule rule = stop_rule(p.selection());
  for (int b = threadIdx.x; b < kBins; b += kThreads) shared.counts[b] = 0;
  if (threadIdx.x == 0) shared.num_listed = 0;
  Extremes<T> extremes =
      cub::BlockReduce<Extremes<T>, kThreads>(shared.temp.extremes)
          .Reduce(thread_extremes<T, kThreads>(loader, segment, p.by_student), MergeExtremes{});
  // The gather's barriers also order the zeros before the first count.
  extremes = all_reduce(group, extremes, MergeExtremes{});

  const Bins<T> bins = bins_of(p, extremes, inv_temperature);
  count_segment<T, kThreads>(loader, segment, p.by_student, bins, shared.counts);
  group.all_reduce_sum(shared.counts);
  const BinRange window =
      find_window<T, kThreads>(shared.counts, rule, bins, p.row_classes(), shared.temp.window);

  const Keys<T> keys(p.ranking().dtype);
  const ClassWeight<T> weight = class_weight(p, extremes.high, inv_temperature);
  WeightSums<T> sums =
      weigh_segment<T, kThreads>(loader, segment, p.by_student, bins, weight, keys, window,
                                 shared.list, kFusedListedKeys, &shared.num_listed);
  __syncthreads();  // every thread has read the window before its storage is reused
  sums = cub::BlockReduce<WeightSums<T>, kThreads>(shared.temp.weights)
             .Reduce(sums, MergeWeightSums{});
  sums = all_reduce(group, sums, MergeWeightSums{});

  RadixSearch<T> search{sums.high, sums.low, sums.above, sums.total};
  while (!search.found()) {  // the same number of passes in every block: all have the same search
    const int shift = search.bin_bits();
    group.sync();  // no peer still reads the bins
    for (int b = threadIdx.x; b < kBins; b += kThreads) shared.histogram[b] = 0;
    __syncthreads();  // all bins are zero before the first weight is added
    if (shared.num_listed <= kFusedListedKeys) {
      for (int k = threadIdx.x; k < shared.num_listed; k += kThreads) {
        add_to_histogram(search, shift, keys, weight, shared.list[k], shared.histogram);
      }
    } else {
      for_each_rank<T, kThreads>(loader, segment, p.by_student, [&](T r) {
        add_to_histogram(search, shift, keys, weight, keys.of(r), shared.histogram);
      });
    }
    group.all_reduce_sum(shared.histogram);
    search = refine_search<T, kThreads>(shared.histogram, rule, search, shared.temp.refine);
  }
  return keys.logit(search.high);
}

/// One segment of a counted row, by one block: cut, moments, coefficients, gradient. Thread 0 of
/// rank 0 writes the row's report.
template <class T, class Elem, int kThreads, class BlockGroup>
__device__ __forceinline__ void process_row(const FusedCall<T>& c, std::int64_t row,
                                            std::int64_t begin, std::int64_t target,
                                            const SharedLoader<T, Elem>& loader, Segment segment,
                                            FusedStorage<T, BlockGroup, kThreads>& shared,
                                            BlockGroup& group) {
  const Problem& p = c.p;
  const T inv_temperature = static_cast<T>(1 / p.weights.temperature);
  const std::int64_t offset = row * p.classes + begin;
  T cut = c.state[row].cut;
  if (!c.constant_cut) {
    cut = find_cut<T, kThreads>(p, loader, segment, inv_temperature, shared, group);
    __syncthreads();  // every thread has left the search before its storage is reused
  }
  const SegmentMoments moments = accumulate_moments<T, kThreads>(
      loader, segment, cut, target, p.by_student, inv_temperature, shared.temp.moments);
  const Slot* slots = group.all_gather(moments);
  if (threadIdx.x == 0) {
    shared.row.kind = RowKind::kCounted;
    shared.row.cut = cut;
    shared.row.target = target;
  }
  __syncthreads();  // the row is in place for the warp that completes it
  if (threadIdx.x < kWarp) {
    const RowReport report = merge_into_row(
        p, [&](std::int64_t r) { return read_slot<SegmentMoments>(slots, static_cast<int>(r)); },
        group.size(), static_cast<double>(*c.weight), &shared.row, shared.temp.merge);
    if (threadIdx.x == 0) shared.report = report;
  }
  __syncthreads();  // the row's coefficients are known
  SegmentKl kl{};
  if (shared.row.kind == RowKind::kCounted) {
    kl = write_gradient<T, kThreads>(loader, segment, shared.row, p.by_student, inv_temperature,
                                     c.all_kl, c.gradient, offset, shared.temp.kl);
  } else {
    fill_gradient<T, kThreads>(loader, segment, RowKind::kInvalid, c.gradient, offset);
  }
  slots =
      group.all_gather(kl);  // its barriers also keep the segment until all threads have read it
  if (group.rank() == 0 && threadIdx.x == 0) {
    SegmentKl sum{};
    for (int r = 0; r < group.size(); ++r) sum = AddKl{}(sum, read_slot<SegmentKl>(slots, r));
    RowReport report = shared.report;
    finalize_row(p, shared.row.kind, sum, &report);
    c.report[row] = report;
    c.state[row].kind = shared.row.kind;
    c.state[row].cut = cut;
  }
  __syncthreads();  // the row is finished before the next one's copy overwrites it
}

template <class T, class Elem, int kThreads, class BlockGroup>
__device__ void process_rows(const FusedCall<T>& c, FusedStorage<T, BlockGroup, kThreads>& shared,
                             char* segments, BlockGroup& group) {
  using Layout = FusedLayout<Elem, BlockGroup>;
  const Problem& p = c.p;
  const std::int64_t begin = min(group.rank() * c.segment_classes, p.classes);
  const int classes = static_cast<int>(min(c.segment_classes, p.classes - begin));
  const Segment segment{0, classes};
  for (std::int64_t row = group.group(); row < p.rows; row += group.num_groups()) {
    const RowKind kind = c.state[row].kind;
    if (kind != RowKind::kCounted) {
      fill_gradient<T, kThreads>(SharedLoader<T, Elem>{}, segment, kind, c.gradient,
                                 row * p.classes + begin);
      if (group.rank() == 0 && threadIdx.x == 0) {
        RowReport report;
        finalize_row(p, kind, SegmentKl{}, &report);
        c.report[row] = report;
      }
      continue;
    }
    const auto* s = static_cast<const Elem*>(p.student.data) + row * p.student.row_stride + begin;
    const auto* u = static_cast<const Elem*>(p.teacher.data) + row * p.teacher.row_stride + begin;
    SharedLoader<T, Elem> loader;
    loader.student = copy_segment<kThreads>(segments, s, classes);
    loader.teacher =
        copy_segment<kThreads>(segments + Layout::segment_bytes(c.segment_classes), u, classes);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();  // the copies of all threads have landed
    // A target outside the segment matches none of its classes.
    process_row<T, Elem, kThreads>(c, row, begin, c.state[row].target - begin, loader, segment,
                                   shared, group);
  }
  group.exit_barrier();  // peers may still read this block's shared memory
}

}  // namespace gkd::cuda
