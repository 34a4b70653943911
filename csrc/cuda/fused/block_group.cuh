// The group of blocks that processes a row, and its collectives: a sum of bins over all blocks, and
// a gather of one value per block. Sums are of integers and gathered values are read in rank order,
// so every block sees the same bits.
//
//   SingleBlock   one block. No communication.
//   ClusterGroup  a cluster of sm_90 and later: peers' shared memory, hardware barriers (about
//                 0.2 us).
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

template <class V>
__device__ __forceinline__ void write_slot(Slot* slot, const V& value) {
  static_assert(sizeof(V) <= kSlotBytes, "a gathered value must fit its slot");
  *reinterpret_cast<V*>(slot->bytes) = value;
}

/// The value of one block.
template <class V>
__device__ __forceinline__ const V& read_slot(const Slot* slots, int rank) {
  return *reinterpret_cast<const V*>(slots[rank].bytes);
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
  /// Waits for all threads of the group.
  __device__ void sync() { __syncthreads(); }

  /// Makes bins[0, kBins) the group's sum, for every thread of every block.
  template <class V>
  __device__ void all_reduce_sum(V*) {
    __syncthreads();  // every thread has added its classes
  }
  /// Every block's value, from its thread 0, in rank order.
  template <class V>
  __device__ const Slot* all_gather(const V& value) {
    __syncthreads();  // the values of the previous gather have been read
    if (threadIdx.x == 0) write_slot(&storage.recv_slots[0], value);
    __syncthreads();  // the value is written
    return storage.recv_slots;
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
  __device__ const Slot* all_gather(const V& value) {
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
    return storage.recv_slots;
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
  __device__ const Slot* all_gather(const V& value) {
    Slot* slots = scratch->slots[phase++ & 1];  // two alternate, as in a cluster
    if (threadIdx.x == 0) write_slot(&slots[rank()], value);
    sync();  // every block has written its value
    // Loads bypass the first-level cache, which does not see other multiprocessors' writes.
    constexpr int kWords = kSlotBytes / 8;
    for (int w = threadIdx.x; w < blocks * kWords; w += blockDim.x) {
      reinterpret_cast<unsigned long long*>(storage.recv_slots)[w] =
          __ldcg(reinterpret_cast<const unsigned long long*>(slots) + w);
    }
    __syncthreads();  // all values have been received
    return storage.recv_slots;
  }
  __device__ void exit_barrier() {}
};

}  // namespace gkd::cuda
