// The order of a sparse call's kernels.
#include "cuda/sparse/launch.h"

#include "cuda/row_ops.h"
#include "cuda/sparse/fused_plan.h"

namespace gkd::cuda {
namespace {

template <class T>
Workspace<T> workspace_of(const Problem& p, const Device& device, const FusedPlan& plan,
                          void* base) {
  if (plan.strategy != LaunchStrategy::kMultiKernel) {
    return lay_out<T>(p, device, /*chunk_rows=*/0, fused_scratch_bytes(plan), base);
  }
  const std::int64_t chunk_rows = sparse_chunk_rows(p);
  return lay_out<T>(p, device, chunk_rows, sparse_scratch_bytes(p, device, chunk_rows), base);
}

/// Moments and gradients of all rows, chunk by chunk where they take several kernels.
template <class T>
cudaError_t run_rows(SparseRows<T> c, const FusedPlan& plan, const Device& device,
                     cudaStream_t stream) {
  const Problem& p = c.p;
  if constexpr (std::is_same_v<T, float>) {
    if (plan.strategy != LaunchStrategy::kMultiKernel) {
      const cudaError_t error = run_sparse_fused(SparseFusedCall{c, plan}, stream);
      if (plan.blocks_per_row == 1 || !is_refusal(error)) return error;
      (void)cudaGetLastError();
      c.w = workspace_of<T>(p, device, FusedPlan{}, c.w.state);  // rows keep their place
    }
  }
  for (std::int64_t row = 0; row < p.rows; row += c.w.chunk_rows) {
    const Chunk chunk = chunk_of(row, std::min(c.w.chunk_rows, p.rows - row), p, device);
    GKD_TRY(run_sparse_loss(c, chunk, stream));
  }
  return cudaSuccess;
}

}  // namespace

std::size_t sparse_workspace_bytes(const Problem& p, const Device& device) {
  return with_arithmetic(p, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const FusedPlan plan = plan_sparse(p, device);
    const std::size_t planned = workspace_of<T>(p, device, plan, nullptr).bytes;
    // A launch of several blocks per row can be refused.
    if (plan.blocks_per_row == 1) return planned;
    return std::max(planned, workspace_of<T>(p, device, FusedPlan{}, nullptr).bytes);
  });
}

cudaError_t sparse_forward(const SparseCall& call, const Results& results, void* workspace) {
  return with_arithmetic(call.p, [&](auto arithmetic) -> cudaError_t {
    using T = decltype(arithmetic);
    const FusedPlan plan = plan_sparse(call.p, call.device);
    const Workspace<T> w = workspace_of<T>(call.p, call.device, plan, workspace);
    const SparseRows<T> rows{{call.p, results.gradient, /*all_kl=*/false, w}, call.group};
    GKD_TRY(read_targets(call.p, w, results.grad_scale, call.stream));
    GKD_TRY(check_groups(rows, call.stream));
    GKD_TRY(run_rows(rows, plan, call.device, call.stream));
    return reduce_loss(call.p, w, results, call.device, call.stream);
  });
}

}  // namespace gkd::cuda
