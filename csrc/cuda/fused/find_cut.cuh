// The cut of a row in shared memory, by the group of blocks that processes it.
#pragma once

#include "cuda/fused/shared_memory.cuh"

namespace gkd::cuda {

/// The row's cut, for every thread of every block. Only the loader's ranking logits are read.
/// `vectors`: by passes over vectors; `known` are the row's then.
template <class T, class Loader, class BlockGroup>
__device__ T find_cut(const Problem& p, const Loader& loader, Segment segment, T inv_temperature,
                      bool vectors, RowExtremes known, FusedStorage<T, BlockGroup>& shared,
                      BlockGroup& group) {
  const int classes = static_cast<int>(segment.end);
  const StopRule rule = stop_rule(p.selection);
  for (int b = threadIdx.x; b < kBins; b += kFusedThreads) shared.counts[b] = 0;
  if (threadIdx.x == 0) shared.num_listed = 0;
  Extremes<T> extremes;
  // -inf is not the smallest logit that a selection by size needs.
  if (vectors && (rule.by_mass || known.low > -std::numeric_limits<T>::infinity())) {
    extremes = {loader.by_student ? known.student : known.teacher, known.low};
    __syncthreads();  // all bins are zero before the first count
  } else {
    extremes = cub::BlockReduce<Extremes<T>, kFusedThreads>(shared.temp.extremes)
                   .Reduce(thread_extremes<T, kFusedThreads>(loader, segment), Merge{});
    // The gather's barriers also order the zeros before the first count.
    extremes = all_reduce(group, extremes);
  }

  Bins<T> bins = bins_of(p, extremes, inv_temperature);
  if (vectors && rule.by_mass) {  // narrower bins where the row spans less: a smaller window
    // A little more, so that the smallest logit does not lie on the last bin's edge.
    const T span = (extremes.high - extremes.low) * inv_temperature * T(1.0001);
    if (span > 0 && span < bins.reach) bins.reach = span;
  }
  const Keys<T> keys(p.ranking().dtype);
  const ClassWeight<T> weight = class_weight(p, bins);
  WeightSums<T> sums;
  const auto window_of_counts = [&] {
    group.all_reduce_sum(shared.counts);
    return find_window(shared.counts, rule, bins, p.row_classes(), shared.temp.window);
  };
  if (!vectors) {
    count_segment<T, kFusedThreads>(loader, segment, bins, shared.counts);
    sums =
        weigh_segment<T, kFusedThreads>(loader, segment, bins, weight, keys, window_of_counts(),
                                        shared.search.list, kFusedListedKeys, &shared.num_listed);
  } else if constexpr (std::is_same_v<T, float>) {
    count_vectors(loader, classes, bins, shared.counts);
    const BinRange window = window_of_counts();
    sums = rule.by_mass ? weigh_vectors<true>(loader, classes, bins, weight, keys, window,
                                              shared.search.list, &shared.num_listed)
                        : weigh_vectors<false>(loader, classes, bins, weight, keys, window,
                                               shared.search.list, &shared.num_listed);
  }
  __syncthreads();  // every thread has read the window before its storage is reused
  sums = reduce_block(sums, shared.temp.weights);
  RadixSearch<T> search;
  for (bool first = true;; first = false) {
    WeightSums<T> of_row = sums;
    const int count = shared.num_listed;
    const int total = group.all_gather_list(shared.search.list, count, kFusedListedKeys, &of_row);
    if (first) search = {of_row.high, of_row.low, of_row.above, of_row.total};
    // Where the keys fit one list, every block has them all and searches by itself.
    if (total <= kFusedListedKeys) {
      return keys.logit(search_list(shared.search.list, total, rule, weight, keys, search,
                                    shared.search.bins, shared.temp.list));
    }
    if (search.found()) return keys.logit(search.high);
    // Else the blocks add up one pass together, which leaves the keys of one bin.
    shared.search.bins[threadIdx.x] = 0;
    if (threadIdx.x == 0) shared.num_listed = 0;
    __syncthreads();  // all bins are zero before the first weight is added
    const int shift = list_shift(search);
    const auto add = [&](KeyOf<T> key) {
      add_to_histogram(search, shift, keys, weight, key, shared.search.bins);
    };
    const bool listed = count <= kFusedListedKeys;  // the block's own; else it reads its segment
    if (listed) {
      for (int k = threadIdx.x; k < count; k += kFusedThreads) add(shared.search.list[k]);
    } else {
      for_each_rank<T, kFusedThreads>(loader, segment, [&](T r) { add(keys.of(r)); });
    }
    group.all_reduce_sum(shared.search.bins, kFusedThreads);
    search = refine_list(shared.search.bins, rule, search, shared.temp.list);
    const auto keep = [&](KeyOf<T> key) {
      if (!search.holds(key)) return;
      const int index = atomicAdd(&shared.num_listed, 1);
      if (index < kFusedListedKeys) shared.search.list[index] = key;
    };
    if (listed) {
      constexpr int kMost = kFusedListedKeys / kFusedThreads;
      KeyOf<T> own[kMost];
#pragma unroll
      for (int k = 0; k < kMost; ++k) {
        own[k] = shared.search.list[threadIdx.x + k * kFusedThreads];
      }
      __syncthreads();  // every thread has read its keys before one is overwritten
#pragma unroll
      for (int k = 0; k < kMost; ++k) {
        if (static_cast<int>(threadIdx.x) + k * kFusedThreads < count) keep(own[k]);
      }
    } else {
      for_each_rank<T, kFusedThreads>(loader, segment, [&](T r) { keep(keys.of(r)); });
    }
    group.sync();  // the keys that are left are listed, and no peer still reads the bins
  }
}

}  // namespace gkd::cuda
