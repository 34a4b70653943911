// Blocks of a cooperative launch as the group that processes a row: global scratch and a counting
// barrier.
#pragma once

#include "cuda/fused/async.cuh"
#include "cuda/fused/block_group.cuh"

namespace gkd::cuda {

/// Global scratch of one group; all zero before the launch.
struct GridScratch {
  alignas(128) unsigned arrivals;  // a line that nothing else is written to: all blocks poll it
  alignas(128) unsigned finished;
  alignas(128) unsigned long long bins[3][kBins];
  Slot slots[2][kMaxGridGroup];
  Slot last[kMaxGridGroup];
};

struct GridGroup {
  static constexpr int kMaxBlocks = kMaxGridGroup, kCountsRoom = kBins;
  struct Storage {
    int starts[kMaxBlocks + 1];  ///< of the blocks' lists in the gathered one
  };
  Storage& storage;
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
  __device__ void all_reduce_sum(V* bins, int count = kBins) {
    __syncthreads();  // every thread has added its classes
    // Three buffers rotate: blocks add to one, may still read the previous one, and clear the next
    // one.
    unsigned long long* sum = scratch->bins[sums % 3];
    unsigned long long* next = scratch->bins[(sums + 1) % 3];
    ++sums;
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) {
      if (b < count && bins[b] != 0) {
        atomicAdd(&sum[b], static_cast<unsigned long long>(bins[b]));
      }
      if (b % blocks == rank()) __stcg(&next[b], 0ull);
    }
    sync();  // every block has added its bins
    for (int b = threadIdx.x; b < count; b += blockDim.x) bins[b] = static_cast<V>(__ldcg(&sum[b]));
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
  template <class V, class Sums>
  __device__ int all_gather_list(V* list, int count, int capacity, Sums* of_block) {
    const auto part = [&](int r) { return reinterpret_cast<V*>(lists + r * kFusedListBytes); };
    __syncthreads();  // the list is written
    for (int k = threadIdx.x; k < min(count, capacity); k += blockDim.x) part(rank())[k] = list[k];
    // Its barrier: every block has written its list.
    const auto heads = all_gather(ListHead<Sums>{*of_block, count});
    *of_block = merge_ranks<kMaxBlocks, Sums>(blocks, [&](int r) { return heads[r].sums; });
    if (threadIdx.x < kWarp) {
      int total = 0;
      for (int first = 0; first <= blocks; first += kWarp) {
        const int r = first + threadIdx.x;
        int start = r > 0 && r <= blocks ? heads[r - 1].count : 0;
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

}  // namespace gkd::cuda
