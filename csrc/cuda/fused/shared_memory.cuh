// The shared memory of a fused block, and what each team's file provides to the planner.
#pragma once

#include "cuda/fused.cuh"
#include "cuda/fused.h"

namespace gkd::cuda {

template <class Elem>
using Arithmetic = std::conditional_t<sizeof(Elem) == 8, double, float>;

template <class T, class Elem, class Team>
struct Fused {
  static constexpr int kThreads = kFusedThreads;
  using Storage = FusedStorage<T, Team, kThreads>;
  /// Where the slices begin.
  static constexpr std::size_t kFixed =
      (sizeof(Storage) + kVectorBytes - 1) / kVectorBytes * kVectorBytes;

  static std::size_t shared_bytes(std::int64_t slice) {
    return kFixed + 2 * slice_bytes<Elem>(slice);
  }
  /// The longest slice that fits `bytes` of shared memory; negative: none.
  static std::int64_t slice_in(std::size_t bytes) {
    const auto room = static_cast<std::int64_t>(bytes) - static_cast<std::int64_t>(kFixed);
    return (room / 2 - 2 * kVectorBytes) / static_cast<std::int64_t>(sizeof(Elem));
  }
};

/// Launches the kernel that `plan` names; defined in fused_block.cu, fused_cluster.cu,
/// fused_grid.cu.
template <class T, class Elem, class Team>
cudaError_t launch_fused(const FusedCall<T>& call, const FusedPlan& plan, cudaStream_t stream);

/// Whether the device grants a cluster of this size with this much shared memory.
template <class Elem>
bool grants_cluster(int members, std::size_t shared_bytes);

}  // namespace gkd::cuda
