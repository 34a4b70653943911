// A cluster of blocks as the group that processes a row: asynchronous stores into peers' shared
// memory, and no cluster barrier but at the start and in rare searches.
#pragma once

#include <cooperative_groups.h>

#include "cuda/fused/async.cuh"
#include "cuda/fused/block_group.cuh"

namespace gkd::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
/// An exchange: every block sends something to every peer, and waits for what all of them sent. A
/// block that ends exchange k knows that its peers have read what they got in exchange k - 1, since
/// they send after that. So two buffers and two mbarriers that take turns serve all exchanges; and
/// no block ends while a peer sends to it.
struct ClusterGroup {
  static constexpr int kMaxBlocks = kMaxCluster, kCountsRoom = 2 * kBins;
  /// All blocks lay out their shared memory alike, so a block finds its peers' variables at the
  /// addresses of its own.
  struct Storage {
    Slot slots[2][kMaxBlocks];
    uint4 last[kMaxBlocks];  ///< for reduce_to_one()
    Mbarrier arrived[3];     ///< of two exchanges in turn, and of reduce_to_one()
    unsigned ready[kMaxBlocks];
  };
  Storage& storage;
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
  __device__ void all_reduce_sum(V* bins, int count = kBins) {
    const int blocks = size(), me = rank(), bins_per_block = count / blocks;
    cluster().sync();  // every block has added its classes
    // Reduce-scatter in place: no other block touches this block's range in this block's copy.
    for (int b = me * bins_per_block + threadIdx.x; b < (me + 1) * bins_per_block;
         b += blockDim.x) {
      V sum = 0;
      for (int r = 0; r < blocks; ++r) sum += cluster().map_shared_rank(bins, r)[b];
      bins[b] = sum;
    }
    cluster().sync();  // every range is summed
    for (int b = threadIdx.x; b < count; b += blockDim.x) {
      const int owner = b / bins_per_block;
      if (owner != me) bins[b] = cluster().map_shared_rank(bins, owner)[b];
    }
    __syncthreads();  // this block's copy is complete
  }
  __device__ void all_reduce_sum(int* bins, int = kBins) {
    constexpr int kVectors = kBins / 4;
    // A block sums `share` vectors, a power of two: divisions by it would take a third of the time.
    const int blocks = size(), me = rank(), bits = __ffs(kVectors) - __ffs(blocks);
    const int share = 1 << bits;
    int4* all = reinterpret_cast<int4*>(bins);
    int4 *mine = all + me * share, *received = all + kVectors;
    __syncthreads();  // every thread has added its classes and read what was gathered before
    if (threadIdx.x == 0) expect_bytes(arrived(), (blocks - 1) * share * int(sizeof(int4)));
    for (int v = threadIdx.x; v < kVectors; v += kFusedThreads) {
      const int owner = v >> bits;
      if (owner != me) send(&received[me * share + (v & (share - 1))], all[v], owner);
    }
    end_exchange();
    // All threads send, those of one vector to different peers. A peer's vectors of this share have
    // arrived, so it has read them and they can be overwritten.
    const int v = threadIdx.x & (share - 1), first = threadIdx.x >> bits;
    int4 sum = mine[v];
    for (int r = 0; r < blocks; ++r) {
      if (r == me) continue;
      const int4 x = received[r * share + v];
      sum = {sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w};
    }
    if (threadIdx.x == 0) expect_bytes(arrived(), (kVectors - share) * int(sizeof(int4)));
    __syncthreads();  // every thread has read its vectors before a block sends or changes them
    for (int r = first; r < blocks; r += kFusedThreads >> bits) {
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
  template <class V, class Sums>
  __device__ int all_gather_list(V* list, int count, int capacity, Sums* sums) {
    constexpr int kMost = kFusedListBytes / (kFusedThreads * sizeof(V));
    V items[kMost];
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      const int item = threadIdx.x + k * kFusedThreads;
      if (item < count) items[k] = list[item];
    }
    // Who sends its count has its list in registers: peers can write there.
    const auto heads = all_gather(ListHead<Sums>{*sums, count});
    *sums = merge_ranks<kMaxBlocks, Sums>(size(), [&](int r) { return heads[r].sums; });
    int total = 0, before = 0;
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) before = total;
      total += heads[r].count;
    }
    if (total > capacity) return total;
    __syncthreads();  // every thread has read the heads, before this block sends
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

}  // namespace gkd::cuda
