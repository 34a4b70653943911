// Chooses a fused kernel by shapes, dtypes and the device's limits, and runs it.
#include "cuda/fused/planner.cuh"
#include "cuda/fused/shared_memory.cuh"

namespace gkd::cuda {
namespace {

/// The answer of the strategy's kernels.
std::int64_t ask_kernel(Dtype dtype, const FusedPlan& plan) {
  const auto ask = plan.strategy == LaunchStrategy::kBlock     ? &ask_residency<SingleBlock>
                   : plan.strategy == LaunchStrategy::kCluster ? &ask_residency<ClusterGroup>
                                                               : &ask_residency<GridGroup>;
  return ask(dtype, plan);
}

}  // namespace

FusedPlan plan_fused(const Problem& p, const Device& d) {
  // A threshold and a size take two searches, which the fused kernels do not have. They subtract a
  // margin in the logits' own dtype.
  const bool is_exact = !p.head.distill_margin || p.ranking_dtype() == p.ranking().dtype;
  if (!p.is_contiguous() || p.selection.sort || p.selection.by_both || !is_exact) return {};
  return with_dtype(p.student.dtype, [&](auto elem) {
    return Planner<decltype(elem), FusedLayout>{p, d}.plan();
  });
}

std::int64_t residency(Dtype dtype, const FusedPlan& plan) {
  return ask_once<&ask_kernel>(dtype, plan);
}

bool is_refusal(cudaError_t error) {
  return error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorInvalidClusterSize ||
         error == cudaErrorInvalidConfiguration || error == cudaErrorLaunchOutOfResources;
}

std::size_t fused_scratch_bytes(const FusedPlan& plan) {
  return plan.strategy == LaunchStrategy::kGrid
             ? GridGroup::scratch_bytes(plan.groups, plan.blocks_per_row)
             : 0;
}

template <class T>
cudaError_t run_fused(const FusedCall<T>& call, cudaStream_t stream) {
  switch (call.plan.strategy) {
    case LaunchStrategy::kBlock:
      return launch_fused<SingleBlock>(call, stream);
    case LaunchStrategy::kCluster:
      return launch_fused<ClusterGroup>(call, stream);
    case LaunchStrategy::kGrid:
      GKD_TRY(
          cudaMemsetAsync(call.w.selection, 0, GridGroup::zero_bytes(call.plan.groups), stream));
      return launch_fused<GridGroup>(call, stream);
    default:
      return cudaErrorInvalidValue;
  }
}
GKD_INSTANTIATE(run_fused)

}  // namespace gkd::cuda
