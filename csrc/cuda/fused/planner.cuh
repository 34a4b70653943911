// Chooses among kernels that hold a row in the shared memory of one block, a cluster or a grid.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "cuda/dtype.cuh"
#include "cuda/fused/cluster_group.cuh"
#include "cuda/fused/grid_group.cuh"
#include "cuda/fused/plan.h"

namespace gkd::cuda {

/// How a block uses a multiprocessor's shared memory.
struct Way {
  bool paired;    ///< two blocks share it
  bool streamed;  ///< for the ranking input's segment alone
};

/// Plans of one problem on one device.
/// `Layout`: FusedLayout, or what has its members, of the kernels that are planned.
template <class Elem, template <class, class> class Layout>
struct Planner {
  const Problem& p;
  const Device& d;
  FusedPlan best;
  double least = std::numeric_limits<double>::infinity();
  bool cluster_pairs = false;  ///< a cluster takes the row whose blocks share multiprocessors

  /// Groups that are resident at a time, of a grid blocks. `paired`: two blocks of them share a
  /// multiprocessor.
  std::int64_t resident(FusedPlan plan, bool paired) const {
    // The most that any row takes, so that few questions are asked of a device.
    plan.shared_bytes = paired ? d.paired_bytes : d.shared_bytes;
    if (d.residency != nullptr) return d.residency(p.student.dtype, plan);
    const int blocks = d.multiprocessors * (paired ? 2 : 1);
    return plan.strategy == LaunchStrategy::kCluster ? blocks / plan.blocks_per_row : blocks;
  }

  /// Whether segments of a row fit, and the plan if so.
  template <class BlockGroup>
  bool fits(LaunchStrategy strategy, std::int64_t blocks, Way way, FusedPlan* plan) const {
    using Own = Layout<Elem, BlockGroup>;
    const std::int64_t longest =
        Own::max_segment_classes(way.paired ? d.paired_bytes : d.shared_bytes, way.streamed);
    // Whole vectors: a segment is then aligned as its row is.
    constexpr std::int64_t kVector = kVectorBytes / sizeof(Elem);
    const std::int64_t segment = ceil_div(ceil_div(p.classes, blocks), kVector) * kVector;
    if (segment > longest) return false;
    *plan = {strategy,
             static_cast<int>(blocks),
             segment,
             Own::shared_bytes(segment, way.streamed),
             std::min(p.rows, kMaxGridBlocks / blocks),
             way.streamed};
    return true;
  }

  /// Takes a plan of which `groups` are resident if it is the cheapest so far.
  void take_if_cheaper(const FusedPlan& plan, std::int64_t groups, bool paired, double serial) {
    const auto waves = static_cast<double>(ceil_div(p.rows, groups));
    const bool share = paired && groups * plan.blocks_per_row > d.multiprocessors;
    const double classes =
        (plan.streamed ? kStreamedCost : 1) * static_cast<double>(plan.segment_classes);
    const double alone = kClassCycles * classes + serial;
    const double both = 2 * kSharedClassCycles * classes;
    // The blocks of the first wave start together; later ones fill each other's serial part.
    const double first = share ? both + serial : alone;
    const double later = share ? std::max(both, alone) : alone;
    const double cycles = first + (waves - 1) * later;
    if (cycles >= least) return;
    least = cycles;
    best = plan;
  }

  /// One block or a cluster per row.
  template <class BlockGroup>
  void consider(LaunchStrategy strategy, int blocks, Way way) {
    FusedPlan plan;
    if (!fits<BlockGroup>(strategy, blocks, way, &plan)) return;
    const std::int64_t groups = std::min(resident(plan, way.paired), p.rows);
    if (groups < 1) return;
    cluster_pairs |= way.paired && blocks > 1;
    take_if_cheaper(plan, groups, way.paired, blocks == 1 ? kBlockRowCycles : kClusterRowCycles);
  }

  /// A cooperative grid: as many blocks per row as each number of groups leaves.
  void consider_grid(Way way) {
    FusedPlan plan;
    if (!fits<GridGroup>(LaunchStrategy::kGrid, kMaxGridGroup, way, &plan)) return;
    const std::int64_t all = resident(plan, way.paired);
    for (std::int64_t groups = 1; groups <= std::min(p.rows, all / 2); ++groups) {
      const std::int64_t blocks = std::min<std::int64_t>(all / groups, kMaxGridGroup);
      if (!fits<GridGroup>(LaunchStrategy::kGrid, blocks, way, &plan)) break;
      plan.groups = groups;
      take_if_cheaper(plan, groups, way.paired, kGridRowCycles);
    }
  }

  FusedPlan plan() {
    std::vector<Way> ways;
    for (bool paired : {true, false}) {
      if (paired && (kFusedBlocks<Arithmetic<Elem>> < 2 || d.paired_bytes == 0)) continue;
      ways.push_back({paired, false});
      // A margin is subtracted in shared memory, where both inputs have to be.
      if (Layout<Elem, SingleBlock>::kStreams && !p.head.distill_margin)
        ways.push_back({paired, true});
    }
    for (const Way way : ways) {
      if (!way.streamed) consider<SingleBlock>(LaunchStrategy::kBlock, 1, way);
      for (int blocks = 2; blocks <= d.cluster; blocks *= 2) {
        consider<ClusterGroup>(LaunchStrategy::kCluster, blocks, way);
      }
    }
    // A grid, for a row that nothing else takes, or a cluster only with a multiprocessor per block.
    const bool alone =
        best.strategy == LaunchStrategy::kCluster && ways[0].paired && !cluster_pairs;
    if (d.cooperative && (alone || best.strategy == LaunchStrategy::kMultiKernel)) {
      for (const Way way : ways) consider_grid(way);
    }
    // A cooperative launch asks for the whole device at once: it comes after the kernel before it.
    const bool row_by_row =
        best.strategy == LaunchStrategy::kBlock || best.strategy == LaunchStrategy::kCluster;
    best.starts_early = d.launches_early() && row_by_row;
    return best;
  }
};

/// ask(dtype, plan) of the current device. A question takes tens of microseconds, so that each is
/// asked once.
template <std::int64_t (*ask)(Dtype, const FusedPlan&)>
std::int64_t ask_once(Dtype dtype, const FusedPlan& plan) {
  // Of plain numbers: the map's code would be exported under the name of a type of gkd.
  using Question = std::tuple<int, int, int, int, std::size_t, bool>;
  static std::mutex mutex;
  static std::map<Question, std::int64_t> answers;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  const Question question{device,
                          static_cast<int>(dtype),
                          static_cast<int>(plan.strategy),
                          plan.blocks_per_row,
                          plan.shared_bytes,
                          plan.streamed};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = answers.find(question);
  if (known != answers.end()) return known->second;
  return answers[question] = ask(dtype, plan);
}

}  // namespace gkd::cuda
