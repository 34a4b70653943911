// Which fused kernel serves a problem on a device, and its launch.
#pragma once

#include "cuda/workspace.h"
#include "math/histogram.h"

namespace gkd::cuda {

struct FusedPlan {
  /// kMultiKernel: no fused kernel fits.
  LaunchStrategy strategy = LaunchStrategy::kMultiKernel;
  int blocks_per_row = 1;
  std::int64_t segment_classes = 0;  ///< of each block, fewer in the last ones
  std::size_t shared_bytes = 0;      ///< dynamic shared memory of a block
  std::int64_t groups = 0;           ///< groups of blocks, one row at a time each
  bool streamed = false;             ///< shared memory holds the ranking input's segments alone
  bool starts_early = false;         ///< while the kernel before it runs
};

/// What a fused kernel is given.
template <class T>
struct FusedCall : RowsCall<T> {
  FusedPlan plan;
  bool constant_cut;  ///< the rows' cuts are in place
  // Of a selection by mass, the same for all rows: a row would wait for a logarithm in double.
  T mass_reach = bin_reach(stop_rule(this->p.selection), this->p.row_classes(), T(0), T(0), T(0));
  T weight_scale = this->p.template weight_scale<T>();
};

/// Decides from shapes, dtypes and the device's limits alone: the plan that takes the fewest cycles
/// by the constants of tuning.h.
FusedPlan plan_fused(const Problem& problem, const Device& device);

/// Bytes of scratch that a plan needs.
std::size_t fused_scratch_bytes(const FusedPlan& plan);

/// All rows: cuts unless they are in place, gradients, reports.
template <class T>
cudaError_t run_fused(const FusedCall<T>& call, cudaStream_t stream);

/// Whether a launch failed since the device does not hold a cluster, or all blocks of a cooperative
/// launch, at once: a stream may have a part of the device that residency() was asked about.
bool is_refusal(cudaError_t error);

/// Device::residency of the current device: how many groups of a plan's blocks it holds at a time,
/// of a grid how many blocks, as it says itself. 0: it grants none.
std::int64_t residency(Dtype dtype, const FusedPlan& plan);

// block.cu, cluster.cu and grid.cu have one kind of block group each, so that a build compiles them
// in parallel:

/// Launches the kernel.
template <class BlockGroup, class T>
cudaError_t launch_fused(const FusedCall<T>& call, cudaStream_t stream);

/// residency() without a cache.
template <class BlockGroup>
std::int64_t ask_residency(Dtype dtype, const FusedPlan& plan);

}  // namespace gkd::cuda
