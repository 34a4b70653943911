// The order of a call's stages.
#include "cuda/launch.h"

#include "cuda/fused.h"
#include "cuda/stages.h"

namespace gkd::cuda {
namespace {

FusedPlan plan_of(const Problem& p, const Device& device, Method method) {
  return method == Method::kSelect ? plan_fused(p, device) : FusedPlan{};
}

template <class T>
Workspace<T> lay_out(const Problem& p, const Device& device, Method method, const FusedPlan& plan,
                     void* base) {
  Workspace<T> w{};
  Arena arena(base);
  const auto rows = static_cast<std::size_t>(p.rows);
  w.state = arena.take<RowState<T>>(rows);
  w.report = arena.take<RowReport>(rows);
  w.weight = arena.take<T>(1);
  if (plan.regime != LaunchStrategy::kMultiKernel) {
    w.selection = arena.take<char>(fused_scratch_bytes(plan));
  } else {
    const bool sort = method == Method::kSort;
    w.chunk_rows = sort ? sort_chunk_rows(p) : select_chunk_rows(p);
    const auto parts = static_cast<std::size_t>(most_parts(w.chunk_rows, p.classes, device));
    w.moments = arena.take<PartMoments>(parts);
    w.kl = arena.take<PartKl>(parts);
    w.selection = arena.take<char>(sort ? sort_scratch_bytes(p, w.chunk_rows)
                                        : select_scratch_bytes<T>(p, w.chunk_rows));
  }
  w.bytes = arena.used();
  return w;
}

/// Cuts, summaries and last sweeps of all rows, chunk by chunk where they take several kernels.
template <class T>
cudaError_t run_rows(const Problem& p, const Device& device, Method method, const FusedPlan& plan,
                     const Workspace<T>& w, bool all_kl, void* gradient, cudaStream_t stream) {
  T cut;
  const bool constant = constant_cut(p, &cut);
  if (constant) GKD_TRY(fill_cuts(p, w.state, cut, stream));
  if (plan.regime != LaunchStrategy::kMultiKernel) {
    return run_fused(p, plan, w, constant, all_kl, gradient, stream);
  }
  for (std::int64_t row = 0; row < p.rows; row += w.chunk_rows) {
    const std::int64_t rows = std::min(w.chunk_rows, p.rows - row);
    const Chunk chunk{row, rows, split_rows(rows, p.classes, device)};
    if (!constant) {
      const auto find = method == Method::kSort ? &find_cuts_sort<T> : &find_cuts_select<T>;
      GKD_TRY(find(p, chunk, w.state, w.selection, stream));
    }
    GKD_TRY(run_split(p, chunk, w, all_kl, gradient, stream));
  }
  return cudaSuccess;
}

template <class T>
cudaError_t forward(const Problem& p, const Results& results, const Device& device, Method method,
                    void* workspace, cudaStream_t stream) {
  const FusedPlan plan = plan_of(p, device, method);
  const Workspace<T> w = lay_out<T>(p, device, method, plan, workspace);
  GKD_TRY(read_targets(p, w.state, w.weight, static_cast<T*>(results.grad_scale), stream));
  GKD_TRY(run_rows<T>(p, device, method, plan, w, /*all_kl=*/false, results.gradient, stream));
  return reduce_loss(p, w.report, w.weight, static_cast<T*>(results.loss), stream);
}

template <class T>
cudaError_t group(const Problem& p, const GroupColumns& columns, const Device& device,
                  Method method, void* workspace, cudaStream_t stream) {
  const FusedPlan plan = plan_of(p, device, method);
  const Workspace<T> w = lay_out<T>(p, device, method, plan, workspace);
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
  device->cluster = major >= 9 ? 16 : 0;  // past the portable size it is asked for first
  device->cooperative = cooperative != 0;
  return cudaSuccess;
}

LaunchStrategy strategy_of(const Problem& p, const Device& device, Method method) {
  return plan_of(p, device, method).regime;
}

std::size_t workspace_bytes(const Problem& p, const Device& device, Method method) {
  const FusedPlan plan = plan_of(p, device, method);
  if (p.wide()) return lay_out<double>(p, device, method, plan, nullptr).bytes;
  return lay_out<float>(p, device, method, plan, nullptr).bytes;
}

cudaError_t forward(const Problem& p, const Results& results, const Device& device, Method method,
                    void* workspace, cudaStream_t stream) {
  if (p.wide()) return forward<double>(p, results, device, method, workspace, stream);
  return forward<float>(p, results, device, method, workspace, stream);
}

cudaError_t group(const Problem& p, const GroupColumns& columns, const Device& device,
                  Method method, void* workspace, cudaStream_t stream) {
  if (p.wide()) return group<double>(p, columns, device, method, workspace, stream);
  return group<float>(p, columns, device, method, workspace, stream);
}

}  // namespace gkd::cuda
