// Which fused kernel serves a sparse problem on a device, and its launch.
#pragma once

#include "cuda/fused/plan.h"
#include "cuda/sparse/stages.h"

namespace gkd::cuda {

/// What a fused kernel is given. Its arithmetic is in float.
struct SparseFusedCall : SparseRows<float> {
  FusedPlan plan;
};

/// As plan_fused(), of which it has the costs: only the student's segment is in shared memory.
FusedPlan plan_sparse(const Problem& problem, const Device& device);

/// All rows, which have been checked: gradients, reports.
cudaError_t run_sparse_fused(const SparseFusedCall& call, cudaStream_t stream);

// block.cu, cluster.cu and grid.cu have one kind of block group each, so that a build compiles them
// in parallel:

/// Launches the kernel.
template <class BlockGroup>
cudaError_t launch_sparse(const SparseFusedCall& call, cudaStream_t stream);

/// Device::residency of the kernel.
template <class BlockGroup>
std::int64_t ask_sparse_residency(Dtype dtype, const FusedPlan& plan);

}  // namespace gkd::cuda
