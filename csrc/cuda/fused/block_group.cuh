// The group of blocks that processes a row, and its collectives: a sum of bins over all blocks, a
// gather of one value per block, and a gather of one list per block. Sums are of integers and
// gathered values are read in rank order, so every block sees the same bits.
//
//   SingleBlock   one block. No communication.
//   ClusterGroup  a cluster of sm_90 and later: peers' shared memory, hardware barriers.
//   GridGroup     blocks of a cooperative launch: global scratch and a counting barrier (1 to
//                 2 us). All blocks must be resident, or the barrier would wait for ever.
#pragma once

#include <cooperative_groups.h>

#include "cuda/tuning.h"
#include "math/histogram.h"

namespace gkd::cuda {

/// One block's value in an all-gather.
struct alignas(16) Slot {
  char bytes[kSlotBytes];
};

/// A block's shared memory for collectives. All blocks lay out their shared memory alike, so a
/// cluster finds its peers' variables at the addresses of its own.
template <int kMaxBlocks>
struct GroupStorage {
  Slot send_slot[2];
  Slot recv_slots[kMaxBlocks];
};
/// A grid receives in global memory.
template <>
struct GroupStorage<kMaxGridGroup> {};

template <class V>
__device__ __forceinline__ void write_slot(Slot* slot, const V& value) {
  static_assert(sizeof(V) <= kSlotBytes, "a gathered value must fit its slot");
  *reinterpret_cast<V*>(slot->bytes) = value;
}

/// A value that another multiprocessor wrote: the loads bypass the first-level cache, which does
/// not see its writes.
template <class V>
__device__ __forceinline__ V load_from_peer(const V* value) {
  using Word =
      std::conditional_t<sizeof(V) % sizeof(uint4) == 0, uint4,
                         std::conditional_t<sizeof(V) % sizeof(uint2) == 0, uint2, unsigned>>;
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

  __device__ V operator[](int rank) const {
    const V* value = reinterpret_cast<const V*>(slots[rank].bytes);
    if constexpr (kGlobal) return load_from_peer(value);
    return *value;
  }
};

/// The block that has item `item` of a group's lists one after the other, and its place there, for
/// `item` in [0, total): sizes[r] is the length of block r's list.
struct ListItem {
  int rank, place;
};
template <class Sizes>
__device__ __forceinline__ ListItem list_item(const Sizes& sizes, int item) {
  int rank = 0;
  for (int size = sizes[0]; item >= size; size = sizes[++rank]) item -= size;
  return {rank, item};
}

/// Merges the values of every kWidth lanes, in pairs: each of these lanes gets the same bits.
template <int kWidth, class V>
__device__ __forceinline__ V merge_lanes(V value) {
  static_assert(sizeof(V) % sizeof(int) == 0);
#pragma unroll
  for (int step = 1; step < kWidth; step *= 2) {
    V other;
#pragma unroll
    for (int w = 0; w < int(sizeof(V) / sizeof(int)); ++w) {
      reinterpret_cast<int*>(&other)[w] =
          __shfl_xor_sync(~0u, reinterpret_cast<const int*>(&value)[w], step);
    }
    value.merge(other);
  }
  return value;
}

/// Items in all lists of a group, and in those before this block's.
struct ListSizes {
  int total = 0, before = 0;

  __device__ __forceinline__ void merge(const ListSizes& y) {
    total += y.total;
    before += y.before;
  }
};

struct SingleBlock {
  static constexpr int kMaxBlocks = 1;
  GroupStorage<1>& storage;

  /// Blocks of the group, and this block among them.
  __device__ int size() const { return 1; }
  __device__ int rank() const { return 0; }
  /// This group among all groups of the launch.
  __device__ std::int64_t group() const { return blockIdx.x; }
  __device__ std::int64_t num_groups() const { return gridDim.x; }
  /// Waits for all threads of the group.
  __device__ void sync() { __syncthreads(); }

  /// Makes bins[0, kBins) the group's sum, for every thread of every block.
  template <class V>
  __device__ void all_reduce_sum(V*) {
    __syncthreads();  // every thread has added its classes
  }
  /// Every block's value, from its thread 0, in rank order.
  template <class V>
  __device__ Gathered<V, false> all_gather(const V& value) {
    __syncthreads();  // the values of the previous gather have been read
    if (threadIdx.x == 0) write_slot(&storage.recv_slots[0], value);
    __syncthreads();  // the value is written
    return {storage.recv_slots};
  }
  /// Makes every block's list[0, total) all blocks' list[0, count), in rank order, for all threads;
  /// returns the total. If that exceeds `capacity`, at most kFusedListBytes, no list changes.
  /// Another collective has to follow before the next list is gathered.
  template <class V>
  __device__ int all_gather_list(V*, int count, int) {
    __syncthreads();  // the list is written
    return count;
  }
  /// Waits until no other block reads this block's shared memory.
  __device__ void exit_barrier() {}
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
struct ClusterGroup {
  static constexpr int kMaxBlocks = kMaxCluster;
  GroupStorage<kMaxBlocks>& storage;
  int phase = 0;

  __device__ static cooperative_groups::cluster_group cluster() {
    return cooperative_groups::this_cluster();
  }
  __device__ int size() const { return static_cast<int>(cluster().num_blocks()); }
  __device__ int rank() const { return static_cast<int>(cluster().block_rank()); }
  __device__ std::int64_t group() const { return blockIdx.x / size(); }
  __device__ std::int64_t num_groups() const { return gridDim.x / size(); }
  __device__ void sync() { cluster().sync(); }

  template <class V>
  __device__ void all_reduce_sum(V* bins) {
    const int blocks = size(), me = rank(), bins_per_block = kBins / blocks;
    cluster().sync();  // every block has added its classes
    // Reduce-scatter in place: no other block touches this block's range in this block's copy.
    for (int b = me * bins_per_block + threadIdx.x; b < (me + 1) * bins_per_block;
         b += blockDim.x) {
      V sum = 0;
      for (int r = 0; r < blocks; ++r) sum += cluster().map_shared_rank(bins, r)[b];
      bins[b] = sum;
    }
    cluster().sync();  // every range is summed
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) {
      const int owner = b / bins_per_block;
      if (owner != me) bins[b] = cluster().map_shared_rank(bins, owner)[b];
    }
    __syncthreads();  // this block's copy is complete
  }
  template <class V>
  __device__ Gathered<V, false> all_gather(const V& value) {
    // Gathers alternate between two slots: between a peer's read of one and the next write to it
    // lies the barrier of the gather that uses the other.
    Slot* send = &storage.send_slot[phase++ & 1];
    if (threadIdx.x == 0) write_slot(send, value);
    cluster().sync();  // every block has written its value and read those of the previous gather
    const int blocks = size();
    for (int r = threadIdx.x; r < blocks; r += blockDim.x) {
      write_slot(&storage.recv_slots[r],
                 *reinterpret_cast<const V*>(cluster().map_shared_rank(send, r)->bytes));
    }
    __syncthreads();  // all values have been received
    return {storage.recv_slots};
  }
  template <class V>
  __device__ int all_gather_list(V* list, int count, int capacity) {
    const auto sizes = all_gather(count);  // its barrier: every list is written
    int total = 0;
    for (int r = 0; r < size(); ++r) total += sizes[r];
    if (total > capacity) return total;
    constexpr int kMost = kFusedListBytes / (kFusedThreads * sizeof(V));
    V items[kMost];
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      const int item = threadIdx.x + k * kFusedThreads;
      if (item >= total) continue;
      const ListItem from = list_item(sizes, item);
      items[k] = cluster().map_shared_rank(list, from.rank)[from.place];
    }
    cluster().sync();  // every block has read the lists before they change
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      const int item = threadIdx.x + k * kFusedThreads;
      if (item < total) list[item] = items[k];
    }
    __syncthreads();  // this block's list is complete
    return total;
  }
  __device__ void exit_barrier() {
    cluster().sync();  // every peer has read this block's shared memory, which ends with the block
  }
};
#else
/// Older devices have no clusters: the planner never launches these, and a launch would trap.
struct ClusterGroup : SingleBlock {
  __device__ int rank() const {
    __trap();
    return 0;
  }
};
#endif

/// Global scratch of one group; all zero before the launch.
struct GridScratch {
  unsigned int arrivals;
  unsigned long long bins[3][kBins];
  Slot slots[2][kMaxGridGroup];
  uint4 list[kFusedListBytes / sizeof(uint4)];
};

struct GridGroup {
  static constexpr int kMaxBlocks = kMaxGridGroup;
  GroupStorage<kMaxBlocks>& storage;
  GridScratch* scratch = nullptr;  ///< this group's
  int blocks = 1;
  unsigned int barriers = 0;
  int phase = 0, sums = 0;

  __device__ int size() const { return blocks; }
  __device__ int rank() const { return blockIdx.x % blocks; }
  __device__ std::int64_t group() const { return blockIdx.x / blocks; }
  __device__ std::int64_t num_groups() const { return gridDim.x / blocks; }

  __device__ void sync() {
    __syncthreads();  // every thread of this block has arrived
    ++barriers;
    if (threadIdx.x == 0) {
      __threadfence();  // what the block wrote is visible before its arrival
      atomicAdd(&scratch->arrivals, 1u);
      // The count only grows, so a late block cannot miss its barrier; the signed difference
      // survives a wrap.
      const unsigned int expected = barriers * static_cast<unsigned int>(blocks);
      volatile unsigned int* arrivals = &scratch->arrivals;
      while (static_cast<int>(*arrivals - expected) < 0) {
      }
      __threadfence();  // nothing is read before the last arrival
    }
    __syncthreads();  // no thread continues before thread 0 has seen the last arrival
  }
  template <class V>
  __device__ void all_reduce_sum(V* bins) {
    __syncthreads();  // every thread has added its classes
    // Three buffers rotate: blocks add to one, may still read the previous one, and clear the next
    // one.
    unsigned long long* sum = scratch->bins[sums % 3];
    unsigned long long* next = scratch->bins[(sums + 1) % 3];
    ++sums;
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) {
      if (bins[b] != 0) atomicAdd(&sum[b], static_cast<unsigned long long>(bins[b]));
      if (b % blocks == rank()) __stcg(&next[b], 0ull);
    }
    sync();  // every block has added its bins
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) bins[b] = static_cast<V>(__ldcg(&sum[b]));
    __syncthreads();  // this block's copy is complete
  }
  template <class V>
  __device__ Gathered<V, true> all_gather(const V& value) {
    Slot* slots = scratch->slots[phase++ & 1];  // two alternate, as in a cluster
    if (threadIdx.x == 0) write_slot(&slots[rank()], value);
    sync();  // every block has written its value
    return {slots};
  }
  template <class V>
  __device__ int all_gather_list(V* list, int count, int capacity) {
    const auto sizes = all_gather(count);
    ListSizes of_all;
    for (int r = threadIdx.x % kWarp; r < blocks; r += kWarp) {
      const int size = sizes[r];
      of_all.merge({size, r < rank() ? size : 0});
    }
    of_all = merge_lanes<kWarp>(of_all);
    if (of_all.total > capacity) return of_all.total;
    V* all = reinterpret_cast<V*>(scratch->list);
    for (int k = threadIdx.x; k < count; k += blockDim.x) all[of_all.before + k] = list[k];
    sync();  // every block has written its list
    for (int k = threadIdx.x; k < of_all.total; k += blockDim.x) list[k] = load_from_peer(&all[k]);
    __syncthreads();  // this block's list is complete
    return of_all.total;
  }
  __device__ void exit_barrier() {}
};

/// Every block's value, merged in an order that the group's size alone decides: the same bits for
/// every thread of every block.
template <class V, class BlockGroup>
__device__ V all_reduce(BlockGroup& group, const V& value) {
  const auto values = group.all_gather(value);
  if constexpr (BlockGroup::kMaxBlocks == 1) return values[0];
  // Lane l merges the values of blocks l, l + width, ..., then the lanes merge theirs in pairs.
  constexpr int kWidth = BlockGroup::kMaxBlocks < kWarp ? BlockGroup::kMaxBlocks : kWarp;
  V result{};
  for (int r = threadIdx.x % kWidth; r < group.size(); r += kWidth) result.merge(values[r]);
  return merge_lanes<kWidth>(result);
}

}  // namespace gkd::cuda
