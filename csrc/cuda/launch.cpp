// The order of a call's kernels.
#include "cuda/launch.h"

#include "cuda/fused/plan.h"
#include "cuda/multi_kernel/stages.h"
#include "cuda/row_ops.h"

namespace gkd::cuda {
namespace {

FusedPlan plan_of(const Problem& p, const Device& device, Method method) {
  return method == Method::kSelect ? plan_fused(p, device) : FusedPlan{};
}

template <class T>
Workspace<T> workspace_of(const Problem& p, const Device& device, Method method,
                          const FusedPlan& plan, void* base) {
  if (plan.strategy != LaunchStrategy::kMultiKernel) {
    return lay_out<T>(p, device, /*chunk_rows=*/0, fused_scratch_bytes(plan), base);
  }
  const bool sort = method == Method::kSort;
  const std::int64_t chunk_rows = sort ? sort_chunk_rows(p) : select_chunk_rows(p);
  const std::size_t selection_bytes =
      sort ? sort_scratch_bytes(p, chunk_rows) : select_scratch_bytes<T>(p, chunk_rows);
  return lay_out<T>(p, device, chunk_rows, selection_bytes, base);
}

/// Cuts, moments and gradients of all rows, chunk by chunk where they take several kernels.
template <class T>
cudaError_t run_rows(const Problem& p, const Device& device, Method method, const FusedPlan& plan,
                     const Workspace<T>& w, bool all_kl, void* gradient, cudaStream_t stream) {
  const std::optional<T> constant = constant_cut<T>(p.selection(), p.row_classes());
  if (constant) GKD_TRY(fill_cuts(p, w.state, *constant, stream));
  if (plan.strategy != LaunchStrategy::kMultiKernel) {
    return run_fused(p, plan, w, constant.has_value(), all_kl, gradient, stream);
  }
  for (std::int64_t row = 0; row < p.rows; row += w.chunk_rows) {
    const std::int64_t rows = std::min(w.chunk_rows, p.rows - row);
    const Chunk chunk{row, rows, partition_rows(rows, p.classes, device)};
    if (!constant) {
      const auto find = method == Method::kSort ? &find_cuts_sort<T> : &find_cuts_select<T>;
      GKD_TRY(find(p, chunk, w.state, w.selection, stream));
    }
    GKD_TRY(run_loss(p, chunk, w, all_kl, gradient, stream));
  }
  return cudaSuccess;
}

template <class T>
cudaError_t forward(const Problem& p, const Results& results, const Device& device, Method method,
                    void* workspace, cudaStream_t stream) {
  const FusedPlan plan = plan_of(p, device, method);
  const Workspace<T> w = workspace_of<T>(p, device, method, plan, workspace);
  GKD_TRY(read_targets(p, w.state, w.weight, static_cast<T*>(results.grad_scale), stream));
  GKD_TRY(run_rows<T>(p, device, method, plan, w, /*all_kl=*/false, results.gradient, stream));
  return reduce_loss(p, w.report, w.weight, static_cast<T*>(results.loss), stream);
}

template <class T>
cudaError_t group(const Problem& p, const GroupColumns& columns, const Device& device,
                  Method method, void* workspace, cudaStream_t stream) {
  const FusedPlan plan = plan_of(p, device, method);
  const Workspace<T> w = workspace_of<T>(p, device, method, plan, workspace);
  GKD_TRY(read_targets<T>(p, w.state, w.weight, nullptr, stream));
  GKD_TRY(run_rows<T>(p, device, method, plan, w, /*all_kl=*/true, nullptr, stream));
  return write_group(p, w.state, w.report, device, columns, stream);
}

}  // namespace

cudaError_t query_device(int index, Device* device) {
  int shared = 0, major = 0, cooperative = 0;
  GKD_TRY(cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, index));
  GKD_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  GKD_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  GKD_TRY(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, index));
  device->shared_bytes = static_cast<std::size_t>(shared);
  device->cluster = major >= 9 ? kMaxCluster : 0;
  device->cooperative = cooperative != 0;
  return cudaSuccess;
}

LaunchStrategy strategy_of(const Problem& p, const Device& device, Method method) {
  return plan_of(p, device, method).strategy;
}

std::size_t workspace_bytes(const Problem& p, const Device& device, Method method) {
  const FusedPlan plan = plan_of(p, device, method);
  return with_arithmetic(p, [&](auto arithmetic) {
    return workspace_of<decltype(arithmetic)>(p, device, method, plan, nullptr).bytes;
  });
}

cudaError_t forward(const Problem& p, const Results& results, const Device& device, Method method,
                    void* workspace, cudaStream_t stream) {
  return with_arithmetic(p, [&](auto arithmetic) {
    return forward<decltype(arithmetic)>(p, results, device, method, workspace, stream);
  });
}

cudaError_t group(const Problem& p, const GroupColumns& columns, const Device& device,
                  Method method, void* workspace, cudaStream_t stream) {
  return with_arithmetic(p, [&](auto arithmetic) {
    return group<decltype(arithmetic)>(p, columns, device, method, workspace, stream);
  });
}

}  // namespace gkd::cuda
