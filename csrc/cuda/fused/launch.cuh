// The fused kernel of one kind of team, and its launch. One file per team instantiates it, so that
// a build compiles them side by side.
#pragma once

#include "cuda/fused_size.cuh"
#include "cuda/stages.h"

namespace gkd::cuda {

template <class T, class Elem, class Team>
__global__ void __launch_bounds__(kFusedThreads) fused_kernel(const FusedCall<T> c) {
  extern __shared__ __align__(16) char memory[];
  using Kernel = Fused<T, Elem, Team>;
  auto& shared = *reinterpret_cast<typename Kernel::Storage*>(memory);
  char* slices = memory + Kernel::kFixed;
  if constexpr (std::is_same_v<Team, GridTeam>) {
    GridTeam team{shared.team, c.scratch + blockIdx.x / c.members, c.members};
    fused_rows<T, Elem, Team, kFusedThreads>(c, shared, slices, team);
  } else {
    Team team{shared.team};
    fused_rows<T, Elem, Team, kFusedThreads>(c, shared, slices, team);
  }
}

template <class T, class Elem, class Team>
cudaError_t launch_fused(const FusedCall<T>& call, const FusedPlan& plan, cudaStream_t stream) {
  const auto kernel = &fused_kernel<T, Elem, Team>;
  GKD_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(plan.shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.teams * plan.members));
  config.blockDim = dim3(kFusedThreads);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  if (plan.regime == LaunchStrategy::kCluster) {
    if (plan.members > kPortableCluster) {
      GKD_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    }
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(plan.members);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  } else if (plan.regime == LaunchStrategy::kGrid) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  config.attrs = &attribute;
  config.numAttrs = plan.regime == LaunchStrategy::kBlock ? 0 : 1;
  return cudaLaunchKernelEx(&config, kernel, call);
}

#define GKD_LAUNCH_FUSED(Team, Elem)                               \
  template cudaError_t launch_fused<Arithmetic<Elem>, Elem, Team>( \
      const FusedCall<Arithmetic<Elem>>&, const FusedPlan&, cudaStream_t);

/// For every element type.
#define GKD_LAUNCH_FUSED_ALL(Team)      \
  GKD_LAUNCH_FUSED(Team, __half)        \
  GKD_LAUNCH_FUSED(Team, __nv_bfloat16) \
  GKD_LAUNCH_FUSED(Team, float)         \
  GKD_LAUNCH_FUSED(Team, double)

}  // namespace gkd::cuda
