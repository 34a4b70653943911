// Which fused kernel serves a problem on a device.
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

/// Decides from shapes, dtypes and the device's limits alone.
FusedPlan plan_fused(const Problem& problem, const Device& device);

/// Bytes of scratch that a plan needs.
std::size_t fused_scratch_bytes(const FusedPlan& plan);

/// All rows: cuts unless `constant_cut`, gradients, reports. `all_kl`: also the KL of a group
/// without weight.
template <class T>
cudaError_t run_fused(const Problem& problem, const FusedPlan& plan, const Workspace<T>& workspace,
                      bool constant_cut, bool all_kl, void* gradient, cudaStream_t stream);

}  // namespace gkd::cuda
