// Chooses a fused kernel by shapes, dtypes and the device's limits, and runs it.
#include <algorithm>

#include "cuda/fused/plan.h"
#include "cuda/fused/shared_memory.cuh"

namespace gkd::cuda {
namespace {

template <class Elem>
FusedPlan plan_for(const Problem& p, const Device& d) {
  // Two blocks on a multiprocessor wherever a row fits so, else one with all of its shared memory.
  if (kFusedBlocks<Arithmetic<Elem>> == 2 && d.paired_bytes > 0) {
    Device pairs = d;
    pairs.multiprocessors *= 2;
    pairs.shared_bytes = d.paired_bytes;
    pairs.paired_bytes = 0;
    const FusedPlan plan = plan_for<Elem>(p, pairs);
    if (plan.strategy != LaunchStrategy::kMultiKernel) return plan;
  }
  FusedPlan plan;
  auto fit = [&](auto layout, LaunchStrategy strategy, std::int64_t blocks) {
    using Layout = decltype(layout);
    const std::int64_t longest = Layout::max_segment_classes(d.shared_bytes);
    const std::int64_t segment = ceil_div(p.classes, blocks);
    if (longest <= 0 || segment > longest) return false;
    plan = {strategy, static_cast<int>(blocks), segment, Layout::shared_bytes(segment), p.rows};
    return true;
  };
  const bool fits_block = fit(FusedLayout<Elem, SingleBlock>{}, LaunchStrategy::kBlock, 1);
  // A row that fits one block gets several if there are too few rows to fill the device.
  if (fits_block && (p.rows >= d.multiprocessors || p.classes < 2 * kMinFusedSegment)) return plan;
  for (int blocks = 2; blocks <= d.cluster; blocks *= 2) {
    const bool enough = p.rows * blocks >= d.multiprocessors ||
                        p.classes < 2 * blocks * kMinFusedSegment || 2 * blocks > d.cluster;
    const FusedPlan before = plan;
    if (!fit(FusedLayout<Elem, ClusterGroup>{}, LaunchStrategy::kCluster, blocks)) continue;
    if (blocks > kPortableCluster && !grants_cluster(p.student.dtype, plan)) {
      plan = before;
      break;
    }
    if (enough) return plan;
  }
  if (plan.strategy != LaunchStrategy::kMultiKernel || !d.cooperative) return plan;
  using Grid = FusedLayout<Elem, GridGroup>;
  const std::int64_t longest = Grid::max_segment_classes(d.shared_bytes);
  if (longest <= 0) return plan;
  const std::int64_t min_blocks = ceil_div(p.classes, longest);
  const std::int64_t resident = d.multiprocessors;  // one block each: segments fill their memory
  if (min_blocks > std::min<std::int64_t>(resident, kMaxGridGroup)) return plan;
  const std::int64_t groups = std::min(p.rows, resident / min_blocks);
  const std::int64_t blocks = std::min<std::int64_t>(resident / groups, kMaxGridGroup);
  if (fit(Grid{}, LaunchStrategy::kGrid, blocks)) plan.groups = groups;
  return plan;
}

}  // namespace

FusedPlan plan_fused(const Problem& p, const Device& d) {
  // A threshold and a size take two searches, which the fused kernels do not have.
  if (!p.is_contiguous() || p.selection.sort || p.selection.by_both) return {};
  return with_dtype(p.student.dtype, [&](auto elem) { return plan_for<decltype(elem)>(p, d); });
}

std::size_t fused_scratch_bytes(const FusedPlan& plan) {
  return plan.strategy == LaunchStrategy::kGrid
             ? static_cast<std::size_t>(plan.groups) * sizeof(GridScratch)
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
      GKD_TRY(cudaMemsetAsync(call.w.selection, 0, fused_scratch_bytes(call.plan), stream));
      return launch_fused<GridGroup>(call, stream);
    default:
      return cudaErrorInvalidValue;
  }
}
GKD_INSTANTIATE(run_fused)

}  // namespace gkd::cuda
