// The cut of a row in shared memory, by the group of blocks that processes it.
#pragma once

#include "cuda/fused/plan.h"
#include "cuda/fused/shared_memory.cuh"

namespace gkd::cuda {

/// Before a row's window is listed. A barrier has to follow.
template <class Storage>
__device__ __forceinline__ void start_list(Storage& shared) {
  if (threadIdx.x == 0) {
    shared.num_listed = 0;
    shared.in_doubt = false;
  }
}

/// The cut among the listed keys of all blocks, for every thread of every block. `sums`: this
/// thread's. `error` bounds the relative error of what is above the window and of what is below it;
/// 0: they are exact. Sets shared.in_doubt where that leaves the cut open; a barrier has to follow.
/// Only the loader's ranking logits are read.
template <class T, class Loader, class BlockGroup>
__device__ T search_cut(const Problem& p, const Loader& loader, Segment segment,
                        const ClassWeight<T>& weight, WeightSums<T> sums, double error,
                        FusedStorage<T, BlockGroup>& shared, BlockGroup& group) {
  const Keys<T> keys(p.ranking().dtype);
  BoundedRule rule{stop_rule(p.selection), -1};
  __syncthreads();  // every thread has read the window before its storage is reused
  sums = reduce_block(sums, shared.temp.weights);
  RadixSearch<T> search;
  for (bool first = true;; first = false) {
    WeightSums<T> of_row = sums;
    const int count = shared.num_listed;
    shared.search.bins[threadIdx.x] = 0;  // for the search; the gather has a barrier
    const int total = group.all_gather_list(shared.search.list, count, kFusedListedKeys, &of_row);
    if (first) {
      search = {of_row.high, of_row.low, of_row.above, of_row.total};
      if (error > 0) {
        const auto all = static_cast<double>(search.total);
        const auto above = static_cast<double>(search.above);
        rule.slack = error * ((1 - rule.threshold) * above + rule.threshold * (all - above)) +
                     4 * static_cast<double>(p.row_classes()) + 0x1p-50 * all;
      }
    }
    // Where the keys fit one list, every block has them all and searches by itself.
    if (total <= kFusedListedKeys) {
      return keys.logit(search_list(shared.search.list, total, rule, weight, keys, search,
                                    shared.search.bins, shared.temp.list, &shared.in_doubt));
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
    search = refine_list(shared.search.bins, rule, search, shared.temp.list, &shared.in_doubt);
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

/// The row's largest and smallest finite ranking logit, for every thread.
template <class T, class Loader, class BlockGroup>
__device__ Extremes<T> row_extremes(const Loader& loader, Segment segment,
                                    FusedStorage<T, BlockGroup>& shared, BlockGroup& group) {
  const Extremes<T> extremes =
      cub::BlockReduce<Extremes<T>, kFusedThreads>(shared.temp.extremes)
          .Reduce(thread_extremes<T, kFusedThreads>(loader, segment), Merge{});
  // The gather's barriers also order the bins' zeros before the first count.
  return all_reduce(group, extremes);
}

/// The row's cut by passes over classes, for every thread of every block.
template <class T, class Loader, class BlockGroup>
__device__ T find_cut(const Problem& p, const Loader& loader, Segment segment, T inv_temperature,
                      FusedStorage<T, BlockGroup>& shared, BlockGroup& group) {
  for (int b = threadIdx.x; b < kBins; b += kFusedThreads) shared.counts[b] = 0;
  start_list(shared);
  const Bins<T> bins = bins_of(p, row_extremes(loader, segment, shared, group), inv_temperature);
  const ClassWeight<T> weight = class_weight(p, bins);
  count_segment<T, kFusedThreads>(loader, segment, bins, shared.counts);
  const BinMasses<kFusedThreads> masses(bins);
  group.all_reduce_sum(shared.counts);
  const BinRange window = find_window(shared.counts, stop_rule(p.selection), masses,
                                      p.row_classes(), shared.temp.window);
  const WeightSums<T> sums = weigh_segment<T, kFusedThreads>(
      loader, segment, bins, weight, Keys<T>(p.ranking().dtype), window, shared.search.list,
      kFusedListedKeys, &shared.num_listed);
  return search_cut(p, loader, segment, weight, sums, 0, shared, group);
}

/// A bound of the relative error of a sum of masses in float: roundings to 2^-24, 10 inside a block
/// (7 or 3 additions of a vector's classes to each other, 3 or 7 of vectors), one for each of
/// `blocks` but the first, and one for the class that the loop leaves out. Terms of second order
/// are below 1%. What truncation takes from integer masses, search_cut() adds.
__device__ inline double sum_error(int blocks) { return 1.01 * 0x1p-24 * (10 + blocks); }

/// A segment's cut and moments over vectors, for every thread. Sets row->cut, the same in all
/// blocks, unless it is in place.
///
/// The pass for the moments also finds what lies above the window and below it: sums of a_j, which
/// are the masses. Where they are not, a pass that weighs all classes is before it. Where the sums'
/// error leaves the cut open, that pass is after it, so the cut is always that of integer masses.
template <bool kCrossEntropy, class Loader, class BlockGroup>
__device__ PlainSums vector_moments(const FusedCall<float>& c, const Loader& loader, int classes,
                                    const RowExtremes& extremes, const VectorRange& range,
                                    const VectorHead& head, VectorRow* row,
                                    FusedStorage<float, BlockGroup>& shared, BlockGroup& group) {
  const Problem& p = c.p;
  unsigned* masks = class_masks<Loader, BlockGroup>(c.plan.segment_classes);
  const auto ranks = for_ranking(loader);
  const Segment segment{0, classes};
  const StopRule rule = stop_rule(p.selection);
  VectorRow by_rank = loader.by_student ? row->swapped() : *row;
  const float largest = loader.by_student ? extremes.student : extremes.teacher;
  const WindowList list{Keys<float>(p.ranking().dtype), shared.search.list, &shared.num_listed};
  bool by_sums = false;
  WeightSums<float> sums;
  ClassWeight<float> weight{};
  WindowEdges edges{};
  if (!c.constant_cut) {
    for (int b = threadIdx.x; b < kBins; b += kFusedThreads) shared.counts[b] = 0;
    start_list(shared);
    Extremes<float> of_rank{largest, extremes.low};
    // -inf is not the smallest logit that a selection by size needs.
    if (!rule.by_mass && extremes.low == -std::numeric_limits<float>::infinity()) {
      of_rank = row_extremes(ranks, segment, shared, group);
    } else {
      __syncthreads();  // all bins are zero before the first count
    }
    const float inv_temperature = rule.by_mass ? c.inv_group_temperature : by_rank.inv_temperature;
    Bins<float> all_bins{of_rank.high, inv_temperature, c.mass_reach};
    if (!rule.by_mass) {
      all_bins = bins_of(p, of_rank, inv_temperature);
    } else {  // narrower bins where the row spans less: a smaller window
      const float span = (of_rank.high - of_rank.low) * all_bins.inv_temperature;
      if (span > 0 && span < all_bins.reach) all_bins.reach = span;
      all_bins.reach *= 1.001f;  // so that the smallest logit is not in the last bin
    }
    weight = {rule.by_mass, {largest, inv_temperature}, c.weight_scale};
    if (!rule.by_mass) weight.mass.zero = by_rank.teacher_zero;  // one set of exponents
    const VectorBins bins(&all_bins, weight.mass.exponent(largest));
    count_vectors(ranks, classes, weight.mass, bins, shared.counts);
    const BinMasses<kFusedThreads> masses(all_bins);
    group.all_reduce_sum(shared.counts);
    edges =
        bins.edges(find_window(shared.counts, rule, masses, p.row_classes(), shared.temp.window));
    by_sums = !rule.by_mass || (!loader.by_student && inv_temperature == by_rank.inv_temperature &&
                                (sizeof(typename Loader::Element) < sizeof(float) ||
                                 p.row_classes() <= kMaxSummedClasses));
  }
  // Lists the window's classes; a thread takes the places of several at once.
  const auto reserve = [&](int count) { return by_sums ? list.reserve(count) : 0; };
  const auto visit = [&](float r, int place) {
    if (!by_sums) return;
    list.put(r, place, &sums);
    sums.total += weight.of(r);
  };
  VectorPass pass;
  bool weighs = !c.constant_cut && !by_sums, passed = false;
  while (true) {  // so that each pass, and the search, stand in the code once
    double error = 0;
    if (weighs) {
      sums = weigh_vectors(ranks, classes, weight, edges, list);
    } else {
      if (!by_sums) edges = WindowEdges::around(row->cut, by_rank.teacher_exponent(row->cut));
      const auto run = [&](auto from_gap) {
        pass = pass_over_vectors<from_gap(), kCrossEntropy>(
            loader, classes, by_rank, range, head, edges, rule.by_mass, masks, reserve, visit);
      };
      row->from_gap() ? run(std::true_type{}) : run(std::false_type{});
      passed = true;
      if (!by_sums) break;
      const float unit = rule.by_mass ? weight.scale : 1;
      sums.above = __float2ull_rz(pass.above * unit);
      sums.total += sums.above + __float2ull_rz(pass.below * unit);
      const auto blocks = static_cast<int>(c.plan.segment_classes / (32 * kFusedThreads)) + 1;
      if (rule.by_mass) error = sum_error(blocks);
    }
    row->cut = search_cut(p, ranks, segment, weight, sums, error, shared, group);
    __syncthreads();  // every thread has left the search before its storage is reused
    if (passed && (weighs || !shared.in_doubt)) break;
    if (!passed) {
      weighs = false;
      continue;
    }
    weighs = true;
    group.sync();  // every block has read that the cut is in doubt, and the lists
    start_list(shared);
    __syncthreads();  // the list is empty
  }
  by_rank.cut = row->cut;
  if (row->from_gap()) {
    add_window<true>(loader, classes, by_rank, range, masks, &pass.sums);
  } else {
    add_window<false>(loader, classes, by_rank, range, masks, &pass.sums);
  }
  return reduce_block<PlainSums>(pass.sums, shared.temp.vector_sums);
}

}  // namespace gkd::cuda
