// What block.cu, cluster.cu and grid.cu provide: the kernels of one kind of block group each, which
// a build compiles in parallel.
#pragma once

#include "cuda/fused/plan.h"

namespace gkd::cuda {

struct GridScratch;

/// What a fused kernel is given.
template <class T>
struct FusedCall {
  Problem p;
  RowState<T>* state;
  RowReport* report;
  const T* weight;
  void* gradient;
  GridScratch* scratch;  ///< for GridGroup: one per group
  int blocks_per_row;
  std::int64_t segment_classes;
  bool constant_cut, all_kl;
};

/// Launches the kernel of one kind of block group.
template <class T, class Elem, class BlockGroup>
cudaError_t launch_fused(const FusedCall<T>& call, const FusedPlan& plan, cudaStream_t stream);

/// Whether the device grants a cluster of this size with this much shared memory.
template <class Elem>
bool grants_cluster(int blocks, std::size_t shared_bytes);

}  // namespace gkd::cuda
