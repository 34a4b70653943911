// Chooses a fused kernel for sparse rows by shapes, dtypes and the device's limits, and runs it.
#include "cuda/fused/planner.cuh"
#include "cuda/sparse/fused_plan.h"
#include "cuda/sparse/shared_memory.cuh"

namespace gkd::cuda {
namespace {

/// The answer of the strategy's kernels.
std::int64_t ask_kernel(Dtype dtype, const FusedPlan& plan) {
  const auto ask = plan.strategy == LaunchStrategy::kBlock     ? &ask_sparse_residency<SingleBlock>
                   : plan.strategy == LaunchStrategy::kCluster ? &ask_sparse_residency<ClusterGroup>
                                                               : &ask_sparse_residency<GridGroup>;
  return ask(dtype, plan);
}

}  // namespace

FusedPlan plan_sparse(const Problem& p, const Device& given) {
  if (p.student.col_stride != 1 || p.compute_in_double()) return {};
  Device d = given;
  if (d.residency != nullptr) d.residency = &ask_once<&ask_kernel>;
  FusedPlan plan;
  (void)with_element<float>(p.student.dtype, [&](auto elem) {
    plan = Planner<decltype(elem), SparseLayout>{p, d}.plan();
    return cudaSuccess;
  });
  return plan;
}

cudaError_t run_sparse_fused(const SparseFusedCall& call, cudaStream_t stream) {
  switch (call.plan.strategy) {
    case LaunchStrategy::kBlock:
      return launch_sparse<SingleBlock>(call, stream);
    case LaunchStrategy::kCluster:
      return launch_sparse<ClusterGroup>(call, stream);
    case LaunchStrategy::kGrid:
      GKD_TRY(
          cudaMemsetAsync(call.w.selection, 0, GridGroup::zero_bytes(call.plan.groups), stream));
      return launch_sparse<GridGroup>(call, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace gkd::cuda
