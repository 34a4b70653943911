// Chooses a fused kernel by shapes, dtypes and the device's limits, and runs it.
#include <algorithm>

#include "cuda/fused/launch.h"
#include "cuda/fused/plan.h"
#include "cuda/fused/shared_memory.cuh"

namespace gkd::cuda {
namespace {

template <class Elem>
FusedPlan plan_for(const Problem& p, const Device& d) {
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
    if (blocks > kPortableCluster && !grants_cluster<Elem>(blocks, plan.shared_bytes)) {
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
  if (!p.is_contiguous()) return {};
  return with_dtype(p.student.dtype, [&](auto elem) { return plan_for<decltype(elem)>(p, d); });
}

std::size_t fused_scratch_bytes(const FusedPlan& plan) {
  return plan.strategy == LaunchStrategy::kGrid
             ? static_cast<std::size_t>(plan.groups) * sizeof(GridScratch)
             : 0;
}

template <class T>
cudaError_t run_fused(const Problem& p, const FusedPlan& plan, const Workspace<T>& w,
                      bool constant_cut, bool all_kl, void* gradient, cudaStream_t stream) {
  FusedCall<T> call;
  call.p = p;
  call.state = w.state;
  call.report = w.report;
  call.weight = w.weight;
  call.gradient = gradient;
  call.scratch = static_cast<GridScratch*>(w.selection);
  call.blocks_per_row = plan.blocks_per_row;
  call.segment_classes = plan.segment_classes;
  call.constant_cut = constant_cut;
  call.all_kl = all_kl;
  if (plan.strategy == LaunchStrategy::kGrid) {
    GKD_TRY(cudaMemsetAsync(call.scratch, 0, fused_scratch_bytes(plan), stream));
  }
  return with_dtype(p.student.dtype, [&](auto elem) -> cudaError_t {
    using Elem = decltype(elem);
    if constexpr (!std::is_same_v<Arithmetic<Elem>, T>) {
      return cudaErrorInvalidValue;  // equal dtypes decide the arithmetic
    } else {
      switch (plan.strategy) {
        case LaunchStrategy::kBlock:
          return launch_fused<T, Elem, SingleBlock>(call, plan, stream);
        case LaunchStrategy::kCluster:
          return launch_fused<T, Elem, ClusterGroup>(call, plan, stream);
        case LaunchStrategy::kGrid:
          return launch_fused<T, Elem, GridGroup>(call, plan, stream);
        default:
          return cudaErrorInvalidValue;
      }
    }
  });
}

template cudaError_t run_fused<float>(const Problem&, const FusedPlan&, const Workspace<float>&,
                                      bool, bool, void*, cudaStream_t);
template cudaError_t run_fused<double>(const Problem&, const FusedPlan&, const Workspace<double>&,
                                       bool, bool, void*, cudaStream_t);

}  // namespace gkd::cuda
