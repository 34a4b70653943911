// The group of blocks that processes a row, and its collectives. Sums are of integers and gathered
// values are merged in an order that the group's size alone decides, so every block sees the same
// bits.
//
//   SingleBlock   one block. No communication.
//   ClusterGroup  a cluster of sm_90 and later: asynchronous stores into peers' shared memory.
//   GridGroup     blocks of a cooperative launch: global scratch and a counting barrier (1 to
//                 2 us). All blocks must be resident, or the barrier would wait for ever.
#pragma once

#include <cooperative_groups.h>

#include <type_traits>

#include "cuda/fused/async.cuh"
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
  Slot slots[2][kMaxBlocks];
  uint4 last[kMaxBlocks];         ///< for reduce_to_one()
  unsigned long long arrived[3];  ///< mbarriers: of two exchanges in turn, and of reduce_to_one()
  unsigned ready[kMaxBlocks];
};
template <>
struct GroupStorage<1> {
  Slot slots[1];
};
template <>
struct GroupStorage<kMaxGridGroup> {
  int starts[kMaxGridGroup + 1];  ///< of the blocks' lists in the gathered one
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

  __device__ V operator[](int rank) const {
    const V* value = reinterpret_cast<const V*>(slots[rank].bytes);
    if constexpr (kGlobal) return load_from_peer(value);
    return *value;
  }
};

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

struct SingleBlock {
  static constexpr int kMaxBlocks = 1;
  GroupStorage<1>& storage;

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

  /// Makes bins[0, kBins) the group's sum, for every thread of every block. Of int bins, [kBins,
  /// 2 kBins) is overwritten.
  template <class V>
  __device__ void all_reduce_sum(V*) {
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
  /// Another collective has to follow before the next list is gathered.
  template <class V>
  __device__ int all_gather_list(V*, int count, int) {
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

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
/// An exchange: every block sends something to every peer, and waits for what all of them sent. A
/// block that ends exchange k knows that its peers have read what they got in exchange k - 1, since
/// they send after that. So two buffers and two mbarriers that take turns serve all exchanges; and
/// no block ends while a peer sends to it.
struct ClusterGroup {
  static constexpr int kMaxBlocks = kMaxCluster;
  GroupStorage<kMaxBlocks>& storage;
  unsigned exchanges = 0, reductions = 0;

  __device__ static cooperative_groups::cluster_group cluster() {
    return cooperative_groups::this_cluster();
  }
  __device__ int size() const { return static_cast<int>(cluster().num_blocks()); }
  __device__ int rank() const { return static_cast<int>(cluster().block_rank()); }
  __device__ std::int64_t group() const { return blockIdx.x / size(); }
  __device__ std::int64_t num_groups() const { return gridDim.x / size(); }
  __device__ void start(void* /*scratch*/, int /*blocks*/) {
    if (threadIdx.x == 0) {
      for (Mbarrier& barrier : storage.arrived) init_mbarrier(&barrier);
    }
    cluster_start();  // no peer sends before the mbarriers are ready
  }
  __device__ void sync() { cluster().sync(); }

  /// This exchange's mbarrier.
  __device__ Mbarrier* arrived() { return &storage.arrived[exchanges & 1]; }
  /// Waits until all bytes of this exchange are here.
  __device__ void end_exchange() {
    wait_for_bytes(arrived(), exchanges >> 1 & 1);
    ++exchanges;
  }

  /// Searches that the window's list does not serve, and double arithmetic: by barriers.
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
  __device__ void all_reduce_sum(int* bins) {
    constexpr int kVectors = kBins / 4;
    const int blocks = size(), me = rank(), share = kVectors / blocks;  // what a block sums
    int4* all = reinterpret_cast<int4*>(bins);
    int4 *mine = all + me * share, *received = all + kVectors;
    __syncthreads();  // every thread has added its classes and read what was gathered before
    if (threadIdx.x == 0) expect_bytes(arrived(), (blocks - 1) * share * int(sizeof(int4)));
    for (int v = threadIdx.x; v < kVectors; v += kFusedThreads) {
      const int owner = v / share;
      if (owner != me) send(&received[me * share + v % share], all[v], owner);
    }
    end_exchange();
    // All threads send, those of one vector to different peers. A peer's vectors of this share have
    // arrived, so it has read them and they can be overwritten.
    const int v = threadIdx.x % share, first = threadIdx.x / share;
    int4 sum = mine[v];
    for (int r = 0; r < blocks; ++r) {
      if (r == me) continue;
      const int4 x = received[r * share + v];
      sum = {sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w};
    }
    if (threadIdx.x == 0) expect_bytes(arrived(), (kVectors - share) * int(sizeof(int4)));
    __syncthreads();  // every thread has read its vectors before a block sends or changes them
    for (int r = first; r < blocks; r += kFusedThreads / share) {
      if (r != me) send(&mine[v], sum, r);
    }
    if (first == 0) mine[v] = sum;
    end_exchange();
    __syncthreads();  // this block's share is written
  }
  template <class V>
  __device__ Gathered<V, false> all_gather(const V& value) {
    Slot* slots = storage.slots[exchanges & 1];
    __syncthreads();  // every thread has read what was gathered before
    if (threadIdx.x < kWarp) {
      Slot* mine = &slots[rank()];
      if (threadIdx.x == 0) {
        write_slot(mine, value);
        expect_bytes(arrived(), (size() - 1) * int(sizeof(V)));
      }
      __syncwarp();  // the value is written
      constexpr int kWords = sizeof(V) / sizeof(WordOf<V>);
      auto* words = reinterpret_cast<WordOf<V>*>(mine->bytes);
      for (int i = threadIdx.x; i < size() * kWords; i += kWarp) {
        if (i / kWords != rank()) send(&words[i % kWords], words[i % kWords], i / kWords);
      }
    }
    end_exchange();
    return {slots};
  }
  template <class V>
  __device__ int all_gather_list(V* list, int count, int capacity) {
    constexpr int kMost = kFusedListBytes / (kFusedThreads * sizeof(V));
    V items[kMost];
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      const int item = threadIdx.x + k * kFusedThreads;
      if (item < count) items[k] = list[item];
    }
    // Who sends its count has its list in registers: peers can write there.
    const auto sizes = all_gather(count);
    int total = 0, before = 0;
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) before = total;
      total += sizes[r];
    }
    if (total > capacity) return total;
    __syncthreads();  // every thread has read the sizes, before this block sends
    if (threadIdx.x == 0) {
      const int words = size() - 1;  // one of each peer, which may have no item
      expect_bytes(arrived(), (total - count) * int(sizeof(V)) + words * int(sizeof(unsigned)));
    }
    if (threadIdx.x < size() && threadIdx.x != rank()) {
      send(&storage.ready[rank()], 1u, threadIdx.x);
    }
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      const int item = threadIdx.x + k * kFusedThreads;
      if (item >= count) continue;
      list[before + item] = items[k];
      for (int r = 0; r < size(); ++r) {
        if (r != rank()) send(&list[before + item], items[k], r);
      }
    }
    end_exchange();
    __syncthreads();  // this block's own items are in place
    return total;
  }
  template <class V>
  __device__ bool reduce_to_one(V* value) {
    if (threadIdx.x >= kWarp) return false;
    Mbarrier* barrier = &storage.arrived[2];
    V* values = reinterpret_cast<V*>(storage.last);
    static_assert(sizeof(V) == sizeof(*storage.last));
    if (rank() != 0) {
      if (threadIdx.x == 0) send(&values[rank()], *value, 0, barrier);
      return false;
    }
    if (threadIdx.x == 0) {
      values[0] = *value;
      expect_bytes(barrier, (size() - 1) * int(sizeof(V)));
    }
    wait_for_bytes(barrier, reductions++ & 1);
    V mine{};
    if (threadIdx.x < size()) mine = values[threadIdx.x];
    *value = merge_lanes<kMaxCluster>(mine);
    return true;
  }

 private:
  /// Sends a value of whole words to where `to` is in a peer's shared memory.
  template <class V>
  __device__ void send(V* to, const V& value, int peer, Mbarrier* barrier) {
    using Word = WordOf<V>;
    const unsigned address = peer_address(to, peer), counter = peer_address(barrier, peer);
#pragma unroll
    for (int w = 0; w < int(sizeof(V) / sizeof(Word)); ++w) {
      store_async(address + w * unsigned(sizeof(Word)), reinterpret_cast<const Word*>(&value)[w],
                  counter);
    }
  }
  template <class V>
  __device__ void send(V* to, const V& value, int peer) {
    send(to, value, peer, arrived());
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
  alignas(128) unsigned arrivals;  // a line that nothing else is written to: all blocks poll it
  alignas(128) unsigned finished;
  alignas(128) unsigned long long bins[3][kBins];
  Slot slots[2][kMaxGridGroup];
  Slot last[kMaxGridGroup];
};

struct GridGroup {
  static constexpr int kMaxBlocks = kMaxGridGroup;
  GroupStorage<kMaxBlocks>& storage;
  GridScratch* scratch = nullptr;  ///< this group's
  char* lists = nullptr;           ///< kFusedListBytes of each of its blocks
  int blocks = 1;
  unsigned barriers = 0, gathers = 0, sums = 0;

  /// Bytes of a launch's scratch: those that have to be zero, and all.
  static std::size_t zero_bytes(std::int64_t groups) {
    return static_cast<std::size_t>(groups) * sizeof(GridScratch);
  }
  static std::size_t scratch_bytes(std::int64_t groups, int blocks) {
    return zero_bytes(groups) + static_cast<std::size_t>(groups * blocks) * kFusedListBytes;
  }
  __device__ int size() const { return blocks; }
  __device__ int rank() const { return blockIdx.x % blocks; }
  __device__ std::int64_t group() const { return blockIdx.x / blocks; }
  __device__ std::int64_t num_groups() const { return gridDim.x / blocks; }
  __device__ void start(void* all_scratch, int blocks_per_row) {
    blocks = blocks_per_row;
    scratch = static_cast<GridScratch*>(all_scratch) + group();
    lists = reinterpret_cast<char*>(static_cast<GridScratch*>(all_scratch) + num_groups()) +
            group() * blocks * kFusedListBytes;
  }

  __device__ void sync() {
    __syncthreads();  // every thread of this block has arrived
    ++barriers;
    if (threadIdx.x == 0) {
      add_release(&scratch->arrivals, 1);
      // The count only grows, so a late block cannot miss its barrier; the signed difference
      // survives a wrap.
      const unsigned expected = barriers * static_cast<unsigned>(blocks);
      while (static_cast<int>(load_acquire(&scratch->arrivals) - expected) < 0) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 700
        __nanosleep(40);  // leaves the line to those that arrive
#endif
      }
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
    // Two buffers alternate: between a block's read of one and the next write to it lies the
    // barrier of the gather that uses the other.
    Slot* slots = scratch->slots[gathers++ & 1];
    if (threadIdx.x == 0) write_slot(&slots[rank()], value);
    sync();  // every block has written its value
    return {slots};
  }
  template <class V>
  __device__ int all_gather_list(V* list, int count, int capacity) {
    const auto part = [&](int r) { return reinterpret_cast<V*>(lists + r * kFusedListBytes); };
    __syncthreads();  // the list is written
    for (int k = threadIdx.x; k < min(count, capacity); k += blockDim.x) part(rank())[k] = list[k];
    const auto sizes = all_gather(count);  // its barrier: every block has written its list
    if (threadIdx.x < kWarp) {
      int total = 0;
      for (int first = 0; first <= blocks; first += kWarp) {
        const int r = first + threadIdx.x;
        int start = r > 0 && r <= blocks ? sizes[r - 1] : 0;
        for (int step = 1; step < kWarp; step *= 2) {
          const int below = __shfl_up_sync(~0u, start, step);
          if (static_cast<int>(threadIdx.x) >= step) start += below;
        }
        start += total;
        if (r <= blocks) storage.starts[r] = start;
        total = __shfl_sync(~0u, start, kWarp - 1);
      }
    }
    __syncthreads();  // the starts are known
    const int total = storage.starts[blocks];
    if (total <= capacity) {
      for (int k = threadIdx.x; k < total; k += blockDim.x) {
        int low = 0, high = blocks;  // the block that has item k
        while (high - low > 1) {
          const int middle = (low + high) / 2;
          (storage.starts[middle] <= k ? low : high) = middle;
        }
        list[k] = load_from_peer(&part(low)[k - storage.starts[low]]);
      }
    }
    __syncthreads();  // this block's list is complete, and the starts have been read
    return total;
  }
  template <class V>
  __device__ bool reduce_to_one(V* value) {
    if (threadIdx.x >= kWarp) return false;
    unsigned before = 0;
    if (threadIdx.x == 0) {
      write_slot(&scratch->last[rank()], *value);
      before = add_acquire_release(&scratch->finished, 1);  // the last block sees all values
    }
    before = __shfl_sync(~0u, before, 0);
    if (before % blocks != blocks - 1u) return false;
    V mine{};
    const Gathered<V, true> values{scratch->last};
    for (int r = threadIdx.x; r < blocks; r += kWarp) mine.merge(values[r]);
    *value = merge_lanes<kWarp>(mine);
    return true;
  }
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
