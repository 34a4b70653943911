// The cut of a row in shared memory, by the group of blocks that processes it.
#pragma once

#include "cuda/fused/shared_memory.cuh"

namespace gkd::cuda {

/// The row's cut, for every thread of every block. `vectors`: by passes over vectors; `known` are
/// the row's then.
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
    sums = weigh_segment<T, kFusedThreads>(loader, segment, bins, weight, keys, window_of_counts(),
                                           shared.list, kFusedListedKeys, &shared.num_listed);
  } else if constexpr (std::is_same_v<T, float>) {
    count_vectors(loader, classes, bins, shared.counts);
    const BinRange window = window_of_counts();
    sums = rule.by_mass ? weigh_vectors<true>(loader, classes, bins, weight, keys, window,
                                              shared.list, &shared.num_listed)
                        : weigh_vectors<false>(loader, classes, bins, weight, keys, window,
                                               shared.list, &shared.num_listed);
  }
  __syncthreads();  // every thread has read the window before its storage is reused
  sums = reduce_block(sums, shared.temp.weights);
  // Where the window's keys fit one list, every block has them all and searches by itself.
  const int num_listed =
      group.all_gather_list(shared.list, shared.num_listed, kFusedListedKeys, &sums);
  RadixSearch<T> search{sums.high, sums.low, sums.above, sums.total};
  if (num_listed <= kFusedListedKeys) {
    return keys.logit(search_list(shared.list, num_listed, rule, weight, keys, search,
                                  shared.histogram, shared.temp.list));
  }
  while (!search.found()) {  // the same number of passes in every block: all have the same search
    const int shift = search.bin_bits();
    group.sync();  // no peer still reads the bins
    for (int b = threadIdx.x; b < kBins; b += kFusedThreads) shared.histogram[b] = 0;
    __syncthreads();  // all bins are zero before the first weight is added
    const auto add = [&](KeyOf<T> key) {
      add_to_histogram(search, shift, keys, weight, key, shared.histogram);
    };
    if (shared.num_listed <= kFusedListedKeys) {
      for (int k = threadIdx.x; k < shared.num_listed; k += kFusedThreads) add(shared.list[k]);
    } else {
      for_each_rank<T, kFusedThreads>(loader, segment, [&](T r) { add(keys.of(r)); });
    }
    group.all_reduce_sum(shared.histogram);
    search = refine_search(shared.histogram, rule, search, shared.temp.refine);
  }
  return keys.logit(search.high);
}

}  // namespace gkd::cuda
