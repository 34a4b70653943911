// Which fused kernel serves a problem on a device.
#pragma once

#include "cuda/workspace.h"

namespace gkd::cuda {

struct FusedPlan {
  LaunchStrategy regime = LaunchStrategy::kMultiKernel;  ///< kMultiKernel: no fused kernel fits
  int members = 1;                                       ///< blocks that share a row
  std::int64_t slice_classes = 0;                        ///< of each of them
  std::size_t shared_bytes = 0;                          ///< dynamic shared memory of a block
  std::int64_t teams = 0;                                ///< rows in flight
};

/// Decides from shapes, dtypes and the device's limits alone.
FusedPlan plan_fused(const Problem& problem, const Device& device);

/// Bytes of zeroed scratch that a plan needs.
std::size_t fused_scratch_bytes(const FusedPlan& plan);

/// All rows: cuts unless `constant_cut`, summaries, gradients, reports.
template <class T>
cudaError_t run_fused(const Problem& problem, const FusedPlan& plan, const Workspace<T>& workspace,
                      bool constant_cut, bool all_kl, void* gradient, cudaStream_t stream);

}  // namespace gkd::cuda
