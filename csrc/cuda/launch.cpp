// The order of a call's kernels.
#include "cuda/launch.h"

#include "cuda/fused/plan.h"
#include "cuda/multi_kernel/stages.h"
#include "cuda/row_ops.h"

namespace gkd::cuda {
namespace {

template <class T>
Workspace<T> workspace_of(const Problem& p, const Device& device, const FusedPlan& plan,
                          void* base) {
  if (plan.strategy != LaunchStrategy::kMultiKernel) {
    return lay_out<T>(p, device, /*chunk_rows=*/0, fused_scratch_bytes(plan), base);
  }
  const bool sort = p.selection.sort;
  const std::int64_t chunk_rows = sort ? sort_chunk_rows(p) : select_chunk_rows(p);
  const std::size_t selection_bytes =
      sort ? sort_scratch_bytes(p, chunk_rows) : select_scratch_bytes<T>(p, chunk_rows);
  return lay_out<T>(p, device, chunk_rows, selection_bytes, base);
}

/// Cuts, moments and gradients of all rows, chunk by chunk where they take several kernels.
template <class T>
cudaError_t run_rows(RowsCall<T> c, const FusedPlan& plan, const Device& device,
                     cudaStream_t stream) {
  const Problem& p = c.p;
  const CutSearch<T> search = cut_search<T>(p.selection, p.row_classes());
  const bool has_constant = search.constant.has_value();
  if (has_constant) GKD_TRY(fill_cuts(p, c.w, *search.constant, stream));
  if (plan.strategy != LaunchStrategy::kMultiKernel) {
    const cudaError_t error = run_fused(FusedCall<T>{c, plan, has_constant}, stream);
    if (plan.blocks_per_row == 1 || !is_refusal(error)) return error;
    (void)cudaGetLastError();
    c.w = workspace_of<T>(p, device, FusedPlan{}, c.w.state);  // rows keep their place
  }
  for (std::int64_t row = 0; row < p.rows; row += c.w.chunk_rows) {
    const Chunk chunk = chunk_of(row, std::min(c.w.chunk_rows, p.rows - row), p, device);
    for (int k = 0; k < search.num_selections; ++k) {
      Problem one = p;
      one.selection = search.selection[k];
      const bool keep_larger = has_constant || k > 0;
      const auto find = p.selection.sort ? &find_cuts_sort<T> : &find_cuts_select<T>;
      GKD_TRY(find(one, chunk, keep_larger, c.w, stream));
    }
    GKD_TRY(run_loss(c, chunk, stream));
  }
  return cudaSuccess;
}

/// Every row's gradient and report, then finish(workspace), which makes the results of them.
template <class Finish>
cudaError_t run(const Call& call, const Results& results, bool all_kl, void* workspace,
                Finish finish) {
  return with_arithmetic(call.p, [&](auto arithmetic) -> cudaError_t {
    using T = decltype(arithmetic);
    const FusedPlan plan = plan_fused(call.p, call.device);
    const Workspace<T> w = workspace_of<T>(call.p, call.device, plan, workspace);
    GKD_TRY(read_targets(call.p, w, results.grad_scale, call.stream));
    const RowsCall<T> rows{call.p, results.gradient, all_kl, w};
    GKD_TRY(run_rows(rows, plan, call.device, call.stream));
    return finish(w);
  });
}

}  // namespace

cudaError_t query_device(int index, Device* device) {
  int shared = 0, all_shared = 0, reserved = 0, major = 0, cooperative = 0;
  GKD_TRY(cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, index));
  GKD_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  GKD_TRY(cudaDeviceGetAttribute(&all_shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, index));
  GKD_TRY(cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, index));
  GKD_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  GKD_TRY(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, index));
  device->shared_bytes = static_cast<std::size_t>(shared);
  device->paired_bytes = static_cast<std::size_t>(all_shared / 2 - reserved);
  device->residency = &residency;
  device->cluster = major >= 9 ? kMaxCluster : 0;
  device->cooperative = cooperative != 0;
  return cudaSuccess;
}

std::size_t workspace_bytes(const Problem& p, const Device& device) {
  return with_arithmetic(p, [&](auto arithmetic) {
    using T = decltype(arithmetic);
    const FusedPlan plan = plan_fused(p, device);
    const std::size_t planned = workspace_of<T>(p, device, plan, nullptr).bytes;
    // A launch of several blocks per row can be refused.
    if (plan.blocks_per_row == 1) return planned;
    return std::max(planned, workspace_of<T>(p, device, FusedPlan{}, nullptr).bytes);
  });
}

cudaError_t forward(const Call& call, const Results& results, void* workspace) {
  return run(call, results, /*all_kl=*/false, workspace, [&](const auto& w) {
    return reduce_loss(call.p, w, results, call.device, call.stream);
  });
}

cudaError_t group(const Call& call, const GroupColumns& columns, void* workspace) {
  return run(call, Results{}, /*all_kl=*/true, workspace,
             [&](const auto& w) { return write_group(call, w, columns); });
}

}  // namespace gkd::cuda
