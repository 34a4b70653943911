// Chooses a fused kernel by shapes, dtypes and the device's limits, and runs it.
#include <algorithm>

#include "cuda/fused_size.cuh"
#include "cuda/stages.h"

namespace gkd::cuda {
namespace {

/// Calls run(Elem{}) for a problem whose inputs are contiguous and of one dtype.
template <class Run>
auto with_elem(Dtype dtype, Run run) {
  switch (dtype) {
    case Dtype::kHalf:
      return run(__half{});
    case Dtype::kBFloat16:
      return run(__nv_bfloat16{});
    case Dtype::kFloat:
      return run(float{});
    default:
      return run(double{});
  }
}

template <class Elem>
FusedPlan plan_for(const Problem& p, const Device& d) {
  using T = Arithmetic<Elem>;
  auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  FusedPlan plan;
  auto fit = [&](LaunchStrategy regime, std::int64_t members, std::int64_t longest, auto bytes_of) {
    const std::int64_t slice = ceil_div(p.classes, members);
    if (longest <= 0 || slice > longest) return false;
    plan = {regime, static_cast<int>(members), slice, bytes_of(slice), p.rows};
    return true;
  };
  using Block = Fused<T, Elem, BlockTeam>;
  const bool fits_block =
      fit(LaunchStrategy::kBlock, 1, Block::slice_in(d.shared_bytes), &Block::shared_bytes);
  // A row that fits one block is still shared where rows alone would leave the device idle.
  if (fits_block && (p.rows >= d.multiprocessors || p.classes < 2 * kLeastSlice)) return plan;
  using Cluster = Fused<T, Elem, ClusterTeam>;
  for (int members = 2; members <= d.cluster; members *= 2) {
    const bool enough = p.rows * members >= d.multiprocessors ||
                        p.classes < 2 * members * kLeastSlice || 2 * members > d.cluster;
    FusedPlan before = plan;
    if (!fit(LaunchStrategy::kCluster, members, Cluster::slice_in(d.shared_bytes),
             &Cluster::shared_bytes)) {
      continue;
    }
    if (members > kPortableCluster && !grants_cluster<Elem>(members, plan.shared_bytes)) {
      plan = before;
      break;
    }
    if (enough) return plan;
  }
  if (plan.regime != LaunchStrategy::kMultiKernel) return plan;
  if (!d.cooperative) return plan;
  using Grid = Fused<T, Elem, GridTeam>;
  const std::int64_t longest = Grid::slice_in(d.shared_bytes);
  if (longest <= 0) return plan;
  const std::int64_t members = ceil_div(p.classes, longest);
  const std::int64_t resident = d.multiprocessors;  // one block each: its slices fill the memory
  if (members > std::min<std::int64_t>(resident, kGridMembers)) return plan;
  const std::int64_t teams = std::min(p.rows, resident / members);
  const std::int64_t spread = std::min<std::int64_t>(resident / teams, kGridMembers);
  if (fit(LaunchStrategy::kGrid, spread, longest, &Grid::shared_bytes)) plan.teams = teams;
  return plan;
}

}  // namespace

FusedPlan plan_fused(const Problem& p, const Device& d) {
  const bool direct =
      p.student.dtype == p.teacher.dtype && p.student.col_stride == 1 && p.teacher.col_stride == 1;
  if (!direct) return {};
  return with_elem(p.student.dtype, [&](auto elem) { return plan_for<decltype(elem)>(p, d); });
}

std::size_t fused_scratch_bytes(const FusedPlan& plan) {
  return plan.regime == LaunchStrategy::kGrid
             ? static_cast<std::size_t>(plan.teams) * sizeof(GridScratch)
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
  call.members = plan.members;
  call.slice_classes = plan.slice_classes;
  call.constant_cut = constant_cut;
  call.all_kl = all_kl;
  if (plan.regime == LaunchStrategy::kGrid) {
    GKD_TRY(cudaMemsetAsync(call.scratch, 0, fused_scratch_bytes(plan), stream));
  }
  return with_elem(p.student.dtype, [&](auto elem) -> cudaError_t {
    using Elem = decltype(elem);
    if constexpr (!std::is_same_v<Arithmetic<Elem>, T>) {
      return cudaErrorInvalidValue;  // equal dtypes decide the arithmetic
    } else {
      switch (plan.regime) {
        case LaunchStrategy::kBlock:
          return launch_fused<T, Elem, BlockTeam>(call, plan, stream);
        case LaunchStrategy::kCluster:
          return launch_fused<T, Elem, ClusterTeam>(call, plan, stream);
        case LaunchStrategy::kGrid:
          return launch_fused<T, Elem, GridTeam>(call, plan, stream);
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
