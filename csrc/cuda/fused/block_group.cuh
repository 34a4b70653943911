// Blocks that share a row. A team adds up bins and gathers one value per member; what is added is
// integer, and what is gathered is read in member order, so every member sees the same bits.
//
//   BlockTeam    one block. No communication.
//   ClusterTeam  a cluster of sm_90 and later: peers' shared memory, hardware barriers (about
//                0.2 us).
//   GridTeam     blocks of a cooperative launch: global scratch and a counting barrier (1 to
//                2 us). All blocks are resident, or its barrier would wait for ever.
#pragma once

#include <cooperative_groups.h>

#include "cuda/state.h"
#include "cuda/tuning.h"
#include "math/histogram.h"

namespace gkd::cuda {

/// Bytes of one member's gathered value.
constexpr int kMailBytes = 128;

struct alignas(16) Mail {
  char bytes[kMailBytes];
};

/// What a team shares on chip. `bins` comes first in every block's dynamic shared memory, so that a
/// cluster finds its peers'.
template <int kMembers>
struct TeamStorage {
  Mail outbox[2];
  Mail inbox[kMembers];
};

template <class V>
__device__ __forceinline__ void put_mail(Mail* to, const V& value) {
  static_assert(sizeof(V) <= kMailBytes, "a gathered value must fit its slot");
  *reinterpret_cast<V*>(to->bytes) = value;
}

struct BlockTeam {
  static constexpr int kMembers = 1;
  TeamStorage<1>& storage;

  __device__ int size() const { return 1; }
  __device__ int rank() const { return 0; }
  __device__ std::int64_t index() const { return blockIdx.x; }
  __device__ std::int64_t count() const { return gridDim.x; }
  __device__ void sync() { __syncthreads(); }

  /// Makes bins[0, kBins) the team's sum, for every thread of every member.
  template <class V>
  __device__ void add(V*) {
    __syncthreads();  // every thread's part is in
  }
  /// Every member's value, from its thread 0, in member order.
  template <class V>
  __device__ const Mail* gather(const V& mine) {
    __syncthreads();  // the last gathering's values have been read
    if (threadIdx.x == 0) put_mail(&storage.inbox[0], mine);
    __syncthreads();  // the value is there
    return storage.inbox;
  }
  __device__ void leave() {}
};

struct ClusterTeam {
  static constexpr int kMembers = 16;
  TeamStorage<16>& storage;
  int phase = 0;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __device__ static cooperative_groups::cluster_group cluster() {
    return cooperative_groups::this_cluster();
  }
  __device__ int size() const { return static_cast<int>(cluster().num_blocks()); }
  __device__ int rank() const { return static_cast<int>(cluster().block_rank()); }
#else
  // Older devices have no clusters: the planner never launches these, and a launch would stop.
  struct None {
    __device__ void sync() const { __trap(); }
    template <class V>
    __device__ V* map_shared_rank(V* mine, int) const {
      return mine;
    }
  };
  __device__ static None cluster() { return {}; }
  __device__ int size() const { return 1; }
  __device__ int rank() const { return 0; }
#endif
  __device__ std::int64_t index() const { return blockIdx.x / size(); }
  __device__ std::int64_t count() const { return gridDim.x / size(); }
  __device__ void sync() { cluster().sync(); }

  template <class V>
  __device__ void add(V* bins) {
    const int members = size(), me = rank(), stripe = kBins / members;
    cluster().sync();  // every member's counts are in
    // Each member sums one stripe over all, in place: nobody else touches its own copy of it.
    for (int b = me * stripe + threadIdx.x; b < (me + 1) * stripe; b += blockDim.x) {
      V sum = 0;
      for (int m = 0; m < members; ++m) sum += cluster().map_shared_rank(bins, m)[b];
      bins[b] = sum;
    }
    cluster().sync();  // every stripe is summed
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) {
      const int owner = b / stripe;
      if (owner != me) bins[b] = cluster().map_shared_rank(bins, owner)[b];
    }
    __syncthreads();  // this member's copy is whole
  }
  template <class V>
  __device__ const Mail* gather(const V& mine) {
    // Two boxes in turn: a peer still reading one is a barrier away from the other's writer.
    Mail* box = &storage.outbox[phase++ & 1];
    if (threadIdx.x == 0) put_mail(box, mine);
    cluster().sync();  // every member's value is there, and the last gathering's have been read
    const int members = size();
    for (int m = threadIdx.x; m < members; m += blockDim.x) {
      put_mail(&storage.inbox[m],
               *reinterpret_cast<const V*>(cluster().map_shared_rank(box, m)->bytes));
    }
    __syncthreads();  // the inbox is full
    return storage.inbox;
  }
  /// A member's shared memory must outlive its peers' reading of it.
  __device__ void leave() { cluster().sync(); }
};

/// Global scratch of one team; all zero before the launch.
struct GridScratch {
  unsigned int arrivals;
  unsigned long long bins[3][kBins];
  Mail mail[2][kGridMembers];
};

struct GridTeam {
  static constexpr int kMembers = kGridMembers;
  TeamStorage<kGridMembers>& storage;
  GridScratch* scratch;  ///< this team's
  int members;
  unsigned int barriers = 0;
  int phase = 0, sums = 0;

  __device__ int size() const { return members; }
  __device__ int rank() const { return blockIdx.x % members; }
  __device__ std::int64_t index() const { return blockIdx.x / members; }
  __device__ std::int64_t count() const { return gridDim.x / members; }

  __device__ void sync() {
    __syncthreads();  // every thread of this member has arrived
    ++barriers;
    if (threadIdx.x == 0) {
      __threadfence();  // what the member wrote is seen before its arrival
      atomicAdd(&scratch->arrivals, 1u);
      // The count only grows, so no late member can miss its turn; the difference survives a wrap.
      const unsigned int all = barriers * static_cast<unsigned int>(members);
      volatile unsigned int* arrivals = &scratch->arrivals;
      while (static_cast<int>(*arrivals - all) < 0) {
      }
      __threadfence();  // nothing is read before the last arrival
    }
    __syncthreads();  // nobody goes on before thread 0 has seen it
  }
  template <class V>
  __device__ void add(V* bins) {
    __syncthreads();  // every thread's part is in
    // Three buffers in turn: one is added to, one may still be read, one is cleared for the next
    // sum.
    unsigned long long* sum = scratch->bins[sums % 3];
    unsigned long long* next = scratch->bins[(sums + 1) % 3];
    ++sums;
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) {
      if (bins[b] != 0) atomicAdd(&sum[b], static_cast<unsigned long long>(bins[b]));
      if (b % members == rank()) __stcg(&next[b], 0ull);
    }
    sync();
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) bins[b] = static_cast<V>(__ldcg(&sum[b]));
    __syncthreads();  // this member's copy is whole
  }
  template <class V>
  __device__ const Mail* gather(const V& mine) {
    Mail* box = scratch->mail[phase++ & 1];
    if (threadIdx.x == 0) put_mail(&box[rank()], mine);
    sync();
    // Past the first-level cache, which does not see what other multiprocessors write.
    constexpr int kWords = kMailBytes / 8;
    for (int w = threadIdx.x; w < members * kWords; w += blockDim.x) {
      reinterpret_cast<unsigned long long*>(storage.inbox)[w] =
          __ldcg(reinterpret_cast<const unsigned long long*>(box) + w);
    }
    __syncthreads();  // the inbox is full
    return storage.inbox;
  }
  __device__ void leave() {}
};

/// The value of one member.
template <class V>
__device__ __forceinline__ const V& mail_of(const Mail* inbox, int member) {
  return *reinterpret_cast<const V*>(inbox[member].bytes);
}

}  // namespace gkd::cuda
