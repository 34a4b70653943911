// The PTX instructions that blocks of a group communicate with.
//
// barrier.cluster with its default semantics, and __threadfence(), wait until every earlier store
// of the block has reached the L2 cache, gradients too, and empty the first-level cache.
// Asynchronous stores into a peer's shared memory, which count their bytes at the peer's mbarrier,
// do neither.
#pragma once

#include <cstdint>

namespace gkd::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
/// An address in this block's shared memory, and the same variable's in that of a cluster's block.
__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ unsigned peer_address(const void* p, int rank) {
  unsigned address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
}

/// An mbarrier: a phase ends when one thread has announced its bytes and all of them have arrived.
using Mbarrier = unsigned long long;

/// By one thread, before a cluster barrier.
__device__ __forceinline__ void init_mbarrier(Mbarrier* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// By one thread per phase; `bytes` may arrive earlier.
__device__ __forceinline__ void expect_bytes(Mbarrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
/// Waits for the end of the phase of a parity: 0 for the first one. What has arrived lies in this
/// block's own shared memory, so the scope of the block (the default) serves; that of the cluster
/// would empty the first-level cache.
__device__ __forceinline__ void wait_for_bytes(Mbarrier* barrier, unsigned parity) {
  unsigned done;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}

/// Stores a word at a peer's address and counts its bytes at the peer's mbarrier.
__device__ __forceinline__ void store_async(unsigned to, unsigned word, unsigned barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to),
      "r"(word), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void store_async(unsigned to, uint2 word, unsigned barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [%0], {%1, %2}, [%3];" ::
          "r"(to),
      "r"(word.x), "r"(word.y), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void store_async(unsigned to, uint4 word, unsigned barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w), "r"(barrier)
      : "memory");
}

/// Waits until every block of the cluster has started. Nothing was stored before that a peer reads
/// but mbarriers, which have a fence of their own.
__device__ __forceinline__ void cluster_start() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::
                   : "memory");
}
#endif

/// Adds to a counter in global memory: what this thread has seen written is visible to whoever
/// reads the counter by an acquire.
__device__ __forceinline__ void add_release(unsigned* counter, unsigned n) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(n) : "memory");
}
__device__ __forceinline__ unsigned add_acquire_release(unsigned* counter, unsigned n) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(n)
               : "memory");
  return before;
}
__device__ __forceinline__ unsigned load_acquire(const unsigned* counter) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

}  // namespace gkd::cuda
