// The group of blocks that processes a row, and its collectives. Sums are of integers and gathered
// values are merged in an order that the group's size alone decides, so every block sees the same
// bits.
//
//   SingleBlock   one block. No communication.
//   ClusterGroup  a cluster of sm_90 and later: asynchronous stores into peers' shared memory.
//   GridGroup     blocks of a cooperative launch: global scratch and a counting barrier (1 to
//                 2 us). All blocks must be resident, or the barrier would wait for ever.
#pragma once

#include <type_traits>

#include "cuda/block/scan.cuh"
#include "math/histogram.h"

namespace gkd::cuda {

/// One block's value in an all-gather.
struct alignas(16) Slot {
  char bytes[kSlotBytes];
};

template <class V>
__device__ __forceinline__ void write_slot(Slot* slot, const V& value) {
  static_assert(sizeof(V) <= kSlotBytes, "a gathered value must fit its slot");
  *reinterpret_cast<V*>(slot->bytes) = value;
}

/// The widest word that a value consists of.
template <class V>
using WordOf =
    std::conditional_t<sizeof(V) % sizeof(uint4) == 0, uint4,
                       std::conditional_t<sizeof(V) % sizeof(uint2) == 0, uint2, unsigned>>;

/// A value that another multiprocessor wrote: the loads bypass the first-level cache, which does
/// not see its writes.
template <class V>
__device__ __forceinline__ V load_from_peer(const V* value) {
  using Word = WordOf<V>;
  static_assert(sizeof(V) % sizeof(Word) == 0);
  V copy;
#pragma unroll
  for (int w = 0; w < int(sizeof(V) / sizeof(Word)); ++w) {
    reinterpret_cast<Word*>(&copy)[w] = __ldcg(reinterpret_cast<const Word*>(value) + w);
  }
  return copy;
}

/// The gathered values by rank, in shared memory or, of a grid, in global memory.
template <class V, bool kGlobal>
struct Gathered {
  const Slot* slots;

  __device__ V operator[](int rank) const { return part<V>(rank, 0); }
  /// The `index`-th of the parts that a value consists of.
  template <class Part>
  __device__ Part part(int rank, int index) const {
    const Part* value = reinterpret_cast<const Part*>(slots[rank].bytes) + index;
    if constexpr (kGlobal) return load_from_peer(value);
    return *value;
  }
};

/// Merges the values of every kWidth lanes, in pairs: each of these lanes gets the same bits.
template <int kWidth, class V>
__device__ __forceinline__ V merge_lanes(V value) {
#pragma unroll
  for (int step = 1; step < kWidth; step *= 2) {
    value.merge(shuffle_words(value, [&](int word) { return __shfl_xor_sync(~0u, word, step); }));
  }
  return value;
}

/// Merges the values of a block's threads: each of them gets the same bits. The values of warps are
/// merged as V, whatever the threads' are. `of_warps` has room for one of each warp; a barrier has
/// to follow before it is used again.
template <class V, class OfThread>
__device__ V reduce_block(const OfThread& value, OfThread* of_warps) {
  const OfThread of_warp = merge_lanes<kWarp>(value);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = of_warp;
  __syncthreads();  // every warp's value is written
  constexpr int kWarps = kFusedThreads / kWarp;
  return merge_lanes<kWarps>(V(of_warps[threadIdx.x % kWarps]));
}
template <class V>
__device__ V reduce_block(const V& value, V* of_warps) {
  return reduce_block<V, V>(value, of_warps);
}

/// Merges value_of(0) to value_of(size - 1), in an order that `size` alone decides: each lane of
/// the warp gets the same bits.
template <int kMaxBlocks, class V, class ValueOf>
__device__ V merge_ranks(int size, ValueOf value_of) {
  if constexpr (kMaxBlocks == 1) return value_of(0);
  // Lane l merges the values of blocks l, l + width, ..., then the lanes merge theirs in pairs.
  constexpr int kWidth = kMaxBlocks < kWarp ? kMaxBlocks : kWarp;
  V result{};
#pragma unroll 1
  for (int r = threadIdx.x % kWidth; r < size; r += kWidth) result.merge(value_of(r));
  return merge_lanes<kWidth>(result);
}

/// What a block says of its list before the lists are gathered.
template <class Sums>
struct ListHead {
  Sums sums;
  int count;
};

struct SingleBlock {
  static constexpr int kMaxBlocks = 1;
  /// Room that all_reduce_sum() takes of int bins.
  static constexpr int kCountsRoom = kBins;
  /// A block's shared memory for collectives.
  struct Storage {
    Slot slots[1];
  };
  Storage& storage;

  /// Blocks of the group, and this block among them.
  __device__ int size() const { return 1; }
  __device__ int rank() const { return 0; }
  /// This group among all groups of the launch.
  __device__ std::int64_t group() const { return blockIdx.x; }
  __device__ std::int64_t num_groups() const { return gridDim.x; }
  /// Before everything else. `scratch` is a grid's.
  __device__ void start(void* /*scratch*/, int /*blocks*/) {}
  /// Waits for all threads of the group.
  __device__ void sync() { __syncthreads(); }

  /// Makes bins[0, count) the group's sum, for every thread of every block. Of int bins, which are
  /// kBins, the room behind them is overwritten.
  template <class V>
  __device__ void all_reduce_sum(V*, int = kBins) {
    __syncthreads();  // every thread has added its classes
  }
  /// Every block's value, from its thread 0, in rank order.
  template <class V>
  __device__ Gathered<V, false> all_gather(const V& value) {
    __syncthreads();  // the values of the previous gather have been read
    if (threadIdx.x == 0) write_slot(&storage.slots[0], value);
    __syncthreads();  // the value is written
    return {storage.slots};
  }
  /// Makes every block's list[0, total) all blocks' list[0, count), in rank order, for all threads;
  /// returns the total. If that exceeds `capacity`, at most kFusedListBytes, no list changes.
  /// Another collective has to follow before the next list is gathered. *sums, the same for the
  /// block's threads, becomes the merged sums of all blocks.
  template <class V, class Sums>
  __device__ int all_gather_list(V*, int count, int, Sums*) {
    __syncthreads();  // the list is written
    return count;
  }
  /// Merges the values of all blocks' threads 0, at most 16 bytes each. One block of the group gets
  /// true, and the result in its thread 0; the others do not wait for it. An all_gather() has to
  /// follow before the next one.
  template <class V>
  __device__ bool reduce_to_one(V*) {
    return true;
  }
};

/// Every block's value, merged: the same bits for every thread of every block.
template <class V, class BlockGroup>
__device__ V all_reduce(BlockGroup& group, const V& value) {
  const auto values = group.all_gather(value);
  return merge_ranks<BlockGroup::kMaxBlocks, V>(group.size(), [&](int r) { return values[r]; });
}

}  // namespace gkd::cuda
