// Which fused kernel serves a problem on a device, and its launch.
#pragma once

#include "cuda/workspace.h"

namespace gkd::cuda {

struct FusedPlan {
  /// kMultiKernel: no fused kernel fits.
  LaunchStrategy strategy = LaunchStrategy::kMultiKernel;
  int blocks_per_row = 1;
  std::int64_t segment_classes = 0;  ///< of each block, fewer in the last ones
  std::size_t shared_bytes = 0;      ///< dynamic shared memory of a block
  std::int64_t groups = 0;           ///< groups of blocks, one row at a time each
};

/// What a fused kernel is given.
template <class T>
struct FusedCall : RowsCall<T> {
  FusedPlan plan;
  bool constant_cut;  ///< the rows' cuts are in place
};

/// Decides from shapes, dtypes and the device's limits alone.
FusedPlan plan_fused(const Problem& problem, const Device& device);

/// Bytes of scratch that a plan needs.
std::size_t fused_scratch_bytes(const FusedPlan& plan);

/// All rows: cuts unless they are in place, gradients, reports.
template <class T>
cudaError_t run_fused(const FusedCall<T>& call, cudaStream_t stream);

/// Launches the kernel of one kind of block group. block.cu, cluster.cu and grid.cu have one kind
/// each, so that a build compiles them in parallel.
template <class BlockGroup, class T>
cudaError_t launch_fused(const FusedCall<T>& call, cudaStream_t stream);

/// Whether the device grants a plan's cluster for logits of `dtype`.
bool grants_cluster(Dtype dtype, const FusedPlan& plan);

}  // namespace gkd::cuda
